"""What binds old spellings to today's names: closest-name hints, single warnings, error types.

Imports nothing of fastrl; the classes that know their own history hold their own tables.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable

_said: set[str] = set()


class InvalidChoice(ValueError, AssertionError, NotImplementedError):
    """A value outside its list or range.

    Old releases used `assert` for some and NotImplementedError for others, so code that catches
    one of these works.
    """


def closest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name most like this one, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def warn_once(message: str, category: type[Warning] = UserWarning, stacklevel: int = 3) -> None:
    """Warn the first time this message is met in the process."""
    if message not in _said:
        _said.add(message)
        warnings.warn(message, category, stacklevel=stacklevel)
