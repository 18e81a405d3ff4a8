"""The generation of TRL that a program is written for, where its calls do not show it."""

from __future__ import annotations

import os

GENERATIONS = ("0.7", "0.11", "1")
VARIABLE = "FASTRL_API"

_pinned: str | None = None


def pin(generation: str | None) -> None:
    """Set what `pinned` returns; None leaves it to `FASTRL_API`.

    Raises:
        ValueError: no generation there is.
    """
    global _pinned
    if generation is not None:
        _require(generation, "set_api")
    _pinned = generation


def pinned() -> str | None:
    """The generation that was pinned, in the program or by `FASTRL_API`; None if none was.

    Raises:
        ValueError: `FASTRL_API` names no generation there is.
    """
    if _pinned is not None:
        return _pinned
    named = os.environ.get(VARIABLE) or None
    if named is not None:
        _require(named, VARIABLE)
    return named


def _require(generation: str, where: str) -> None:
    if generation not in GENERATIONS:
        known = ", ".join(map(repr, GENERATIONS))
        raise ValueError(f"{where}: {generation!r} is no generation of TRL's names; give {known}")
