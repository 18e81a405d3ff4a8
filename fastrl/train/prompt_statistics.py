"""Rewards of each prompt over time, for advantages that compare a prompt with itself (DDPO)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

EPSILON = 1e-6


class PerPromptStatTracker:
    """Mean and deviation of the last rewards of every prompt (arXiv 2305.13301, section 5).

    Args:
        buffer_size: rewards kept of a prompt.
        min_count: with fewer of them, its rewards are compared with the whole batch.
    """

    def __init__(self, buffer_size: int, min_count: int) -> None:
        self.buffer_size = buffer_size
        self.min_count = min_count
        self.stats: dict[str, deque[float]] = {}

    def update(self, prompts: Sequence[str], rewards: Sequence[float]) -> np.ndarray:
        """Take in a batch; returns its advantages (B,), (reward - mean) / (deviation + 1e-6)."""
        names, values = np.array(prompts), np.asarray(rewards, dtype=float)
        advantages = np.empty_like(values)
        for prompt in np.unique(names):
            own = names == prompt
            seen = self.stats.setdefault(prompt, deque(maxlen=self.buffer_size))
            seen.extend(values[own])
            compared = values if len(seen) < self.min_count else np.array(seen)
            advantages[own] = (values[own] - compared.mean()) / (compared.std() + EPSILON)
        return advantages

    def get_stats(self) -> dict[str, dict[str, float]]:
        """Prompt -> `mean`, biased `std` and `count` of the rewards that are kept."""
        return {
            prompt: {"mean": np.mean(seen), "std": np.std(seen), "count": len(seen)}
            for prompt, seen in self.stats.items()
        }
