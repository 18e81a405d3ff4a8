"""Rewards against repetition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def get_repetition_penalty_reward(
    ngram_size: int = 3, max_penalty: float = -1.0
) -> RepetitionPenalty:
    """Penalty on repeated n-grams of tokens (arXiv:2502.03373, appendix C.2).

    A completion with u different n-grams among its t gets (1 - u / t) * max_penalty; one shorter
    than an n-gram gets 0.

    Args:
        ngram_size: n, at least 1.
        max_penalty: what a completion that is all repetition comes close to; at most 0.

    Raises:
        ValueError: for values outside these ranges.
    """
    if max_penalty > 0:
        raise ValueError(f"max_penalty must not be positive, got {max_penalty}")
    if ngram_size < 1:
        raise ValueError(f"ngram_size must be at least 1, got {ngram_size}")
    return RepetitionPenalty(ngram_size, max_penalty)


@dataclass(frozen=True)
class RepetitionPenalty:
    """See `get_repetition_penalty_reward`; an object, so that it can be sent to a worker."""

    ngram_size: int
    max_penalty: float

    __name__ = "repetition_penalty_reward"

    def __call__(self, completion_ids: Sequence[Sequence[int]], **kwargs: Any) -> list[float]:
        """A reward in [max_penalty, 0] for each completion."""
        return [self._of_tokens(list(ids)) for ids in completion_ids]

    def _of_tokens(self, ids: list[int]) -> float:
        total = len(ids) - self.ngram_size + 1
        if total < 1:
            return 0.0
        different = {tuple(ids[i : i + self.ngram_size]) for i in range(total)}
        repeated = 1 - len(different) / total
        return repeated * self.max_penalty if repeated else 0.0
