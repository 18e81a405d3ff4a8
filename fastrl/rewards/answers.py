"""What a reward function returned, read as one outcome a completion; knows no torch."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from fastrl.rewards.outcome import Outcome, Timeout

_LARGEST = 3.4028234663852886e38  # of fp32


def outcomes(name: str, returned: Any, rows: int) -> list[Outcome]:
    """The outcome of each row: a finite float, None, NaN or `TIMEOUT`.

    Args:
        name: of the function, for errors.
        returned: what it returned: a list, tuple, other iterable, array or tensor of numbers,
            arrays or tensors of one number, and None.
        rows: how many completions it was given.

    Raises:
        TypeError: for what is no list of numbers.
        ValueError: for another number of rows, or a number that is infinite in fp32.
    """
    values = _listed(name, returned)
    if len(values) != rows:
        raise ValueError(
            f"reward function {name!r} returned {len(values)} rewards for {rows} completions; "
            "return one for each, None where there is none"
        )
    return [_outcome(name, row, value) for row, value in enumerate(values)]


def _listed(name: str, returned: Any) -> list[Any]:
    if inspect.isawaitable(returned):
        if inspect.iscoroutine(returned):
            returned.close()
        raise TypeError(
            f"reward function {name!r} returned something to await; define it with `async def`, so "
            "that it is known to be asynchronous"
        )
    if getattr(returned, "ndim", 1) == 2 and returned.shape[1] == 1:
        returned = returned.reshape(-1)
    values = returned.tolist() if hasattr(returned, "tolist") else returned
    if not isinstance(values, str | bytes | Mapping | Set):
        try:
            return list(values)
        except TypeError:
            pass
    missing = "; is a return statement missing?" if values is None else ""
    raise TypeError(
        f"reward function {name!r} returned {reprlib.repr(values)} ({type(returned).__name__}), "
        f"not a list of one number for each completion{missing}"
    )


def _outcome(name: str, row: int, value: Any) -> Outcome:
    if value is None or isinstance(value, Timeout):
        return value
    number = value
    if not isinstance(number, Real) and hasattr(number, "item"):
        try:
            number = number.item()
        except (TypeError, ValueError, RuntimeError):  # it holds more than one, or none
            number = value
    if not isinstance(number, Real):
        raise TypeError(
            f"reward function {name!r} returned {reprlib.repr(value)} ({type(value).__name__}) for "
            f"completion {row}, which is no number; return a float, or None for no reward"
        )
    number = float(number)
    if abs(number) > _LARGEST:
        raise ValueError(
            f"reward function {name!r} returned {value!r} for completion {row}, which is infinite "
            "in fp32; return a finite number, or None for no reward"
        )
    return number


@dataclass
class Log:
    """Calls of `log_extra` and `log_metric`, kept until they can be made."""

    calls: list[tuple[bool, str, Any]] = field(default_factory=list)  # is a column, name, what

    def extra(self, column: str, values: list[Any]) -> None:
        """Stands for the trainer's `log_extra`."""
        self.calls.append((True, column, values))

    def metric(self, name: str, value: float) -> None:
        """Stands for the trainer's `log_metric`."""
        self.calls.append((False, name, value))

    def replay(
        self, log_extra: Callable[[str, list[Any]], None], log_metric: Callable[[str, Any], None]
    ) -> None:
        """Make the calls, in their order."""
        for is_column, name, given in self.calls:
            (log_extra if is_column else log_metric)(name, given)
