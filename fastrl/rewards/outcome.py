"""What a reward function may say of a completion: a value, that it has none, or that time ran out.

A value is a number. `None` is *invalid*: the row cannot be scored, for instance because its
reference solution cannot be read. `TIMEOUT` is a NaN of its own type, so that arithmetic leaves the
row out as it does an invalid one, and a log can still tell the two apart.
"""

from __future__ import annotations


class Timeout(float):
    """A NaN that says why there is no value."""

    def __new__(cls) -> Timeout:
        """Always NaN."""
        return super().__new__(cls, "nan")

    def __repr__(self) -> str:
        """As it is written."""
        return "TIMEOUT"

    def __reduce__(self) -> tuple[type[Timeout], tuple[()]]:
        """Workers send it back pickled."""
        return Timeout, ()


TIMEOUT = Timeout()

Outcome = float | None
