"""Reward functions that need no model: completions to scores."""

from __future__ import annotations

from fastrl.rewards.accuracy import (
    accuracy_reward,
    get_cosine_scaled_reward,
    reasoning_accuracy_reward,
)
from fastrl.rewards.format import think_format_reward
from fastrl.rewards.length import get_soft_overlong_punishment
from fastrl.rewards.outcome import TIMEOUT, Timeout
from fastrl.rewards.repetition import get_repetition_penalty_reward

__all__ = [
    "TIMEOUT",
    "Timeout",
    "accuracy_reward",
    "get_cosine_scaled_reward",
    "get_repetition_penalty_reward",
    "get_soft_overlong_punishment",
    "reasoning_accuracy_reward",
    "think_format_reward",
]
