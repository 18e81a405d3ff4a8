"""Rewards of a completion's length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def get_soft_overlong_punishment(
    max_completion_len: int, soft_punish_cache: int
) -> SoftOverlongPunishment:
    """DAPO's length penalty (arXiv:2503.14476, eq. 13), a reward function over token ids.

    With L = max_completion_len and C = soft_punish_cache, a completion of n tokens gets 0 up to
    n = L - C, falls on a line to -1 at n = L, and gets -1 beyond.

    Args:
        max_completion_len: L, in tokens.
        soft_punish_cache: C, in tokens; 0 for a cliff at L.

    Raises:
        ValueError: unless 0 <= C <= L.
    """
    if not 0 <= soft_punish_cache <= max_completion_len:
        raise ValueError(
            f"soft_punish_cache={soft_punish_cache} must lie between 0 and "
            f"max_completion_len={max_completion_len}"
        )
    return SoftOverlongPunishment(max_completion_len, soft_punish_cache)


@dataclass(frozen=True)
class SoftOverlongPunishment:
    """See `get_soft_overlong_punishment`; an object, so that it can be sent to a worker."""

    max_completion_len: int
    soft_punish_cache: int

    __name__ = "soft_overlong_punishment_reward"

    def __call__(self, completion_ids: Sequence[Sequence[int]], **kwargs: Any) -> list[float]:
        """A reward in [-1, 0] for each completion."""
        return [self._of_length(len(ids)) for ids in completion_ids]

    def _of_length(self, tokens: int) -> float:
        excess = tokens - (self.max_completion_len - self.soft_punish_cache)
        if excess <= 0:
            return 0.0
        return -1.0 if tokens > self.max_completion_len else -excess / self.soft_punish_cache
