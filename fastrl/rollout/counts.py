"""Numbers of things among arguments."""

from __future__ import annotations

from typing import Any


def require_count(name: str, value: Any, least: int = 1) -> int:
    """The value, if it counts something.

    Raises:
        ValueError: naming the argument, for what is no whole number or below `least`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value
