"""Rewards of a completion's shape."""

from __future__ import annotations

from typing import Any

from fastrl.rewards.text import Completion, text_of

_OPEN, _CLOSE = "<think>", "</think>"


def think_format_reward(completions: list[Completion], **kwargs: Any) -> list[float]:
    """1.0 for a completion that begins with its one `<think>` and closes it, else 0.0.

    Args:
        completions: texts, or lists of messages whose first is judged.
        kwargs: other columns, unused.
    """
    return [_well_formed(text_of(completion)) for completion in completions]


def _well_formed(text: str) -> float:
    inside = text.removeprefix(_OPEN)
    begins = len(inside) < len(text)
    return float(begins and _OPEN not in inside and _CLOSE in inside)
