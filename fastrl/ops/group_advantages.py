"""Advantages of answers measured against the other answers to their prompt.

Scores are (B,), a handful of numbers, so torch on whatever device they are is the one backend. NaN
marks an answer that could not be scored: it counts nowhere and its advantage is 0.
"""

from __future__ import annotations

from typing import Literal

import torch

from fastrl.ops._inputs import can_ask, computing_dtype, require_floating, require_whole

_EPSILON = 1e-4  # added to each standard deviation, as TRL does
SCALES = ("group", "batch", "none")


def _checked(scores: torch.Tensor) -> torch.Tensor:
    require_floating("scores", scores)
    if scores.dim() != 1:
        raise ValueError(f"scores must be (B,), not of shape {tuple(scores.shape)}")
    if can_ask(scores) and bool(scores.isinf().any()):
        row = int(scores.isinf().nonzero()[0])
        raise ValueError(f"scores[{row}] is {float(scores[row])}; give NaN for what has no score")
    return scores.detach().double()


def _members(scores: torch.Tensor, group: int | torch.Tensor) -> tuple[torch.Tensor, int]:
    """(B,) int64 in [0, groups), and how many groups there are."""
    if not isinstance(group, torch.Tensor):
        size = require_whole("group", group, 1)
        if len(scores) % size:
            raise ValueError(f"group={size} does not divide the {len(scores)} scores")
        return torch.arange(len(scores), device=scores.device) // size, len(scores) // size
    if group.dtype != torch.int64 or group.shape != scores.shape:
        raise ValueError(
            f"group must be a whole number or {tuple(scores.shape)} int64, not "
            f"{tuple(group.shape)} {group.dtype}"
        )
    found, inverse = group.to(scores.device).unique(return_inverse=True)
    return inverse, len(found)


def _sums(x: torch.Tensor, of: torch.Tensor, groups: int) -> torch.Tensor:
    """(B,): for each row the sum over its group, NaN counting as 0."""
    return x.new_zeros(groups).index_add_(0, of, x.nan_to_num(0.0))[of]


def _moments(x: torch.Tensor, of: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row mean and unbiased deviation of its group, NaN left out.

    The mean of none and the deviation of one are NaN.
    """
    count = _sums((~x.isnan()).to(x.dtype), of, groups)
    mean = _sums(x, of, groups) / count
    variance = _sums((x - mean).square(), of, groups) / (count - 1)
    return mean, torch.where(count > 1, variance, torch.nan).sqrt()


def group_advantages(
    scores: torch.Tensor,
    group: int | torch.Tensor,
    scale: Literal["group", "batch", "none"] = "group",
) -> tuple[torch.Tensor, torch.Tensor]:
    """GRPO's advantages: A_i = (r_i - mean of the group) / (std + 1e-4).

    arXiv:2402.03300, section 4.1.2; without the division arXiv:2503.20783; over the batch
    arXiv:2508.08221. Deviations are unbiased.

    Args:
        scores: (B,), NaN where there is none.
        group: how many consecutive rows answer the same prompt; or (B,) int64, equal for such rows.
        scale: whose standard deviation divides: the group's, that of all rows, or none.

    Returns:
        advantages (B,), fp32 (fp64 if the scores are): 0 where there is no score, or no other to
        compare with. And (B,) the standard deviation, of all rows for "batch", else of the group;
        NaN where fewer than two rows have a score.

    Raises:
        TypeError, ValueError: for a wrong shape, dtype or scale, and for infinite scores (CPU).
    """
    x = _checked(scores)
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, not {scale!r}")
    of, groups = _members(x, group)
    mean, std = _moments(x, of, groups)
    if scale == "batch":
        _, std = _moments(x, torch.zeros_like(of), 1)
    advantages = x - mean
    if scale != "none":
        advantages = advantages / (std + _EPSILON)
    dtype = computing_dtype(scores)
    return advantages.nan_to_num(0.0).to(dtype), std.to(dtype)


def leave_one_out(
    scores: torch.Tensor, group: int | torch.Tensor, normalize: bool = False
) -> torch.Tensor:
    """RLOO's advantages: A_i = r_i - mean of the group's other scores (arXiv:2402.14740).

    Args:
        scores, group: as for `group_advantages`.
        normalize: then (A - mean) / (std + 1e-4) over all rows that have an advantage.

    Returns:
        (B,) fp32 (fp64 if the scores are): 0 where there is no score, or no other to compare with.

    Raises:
        TypeError, ValueError: as `group_advantages`.
    """
    x = _checked(scores)
    of, groups = _members(x, group)
    others = _sums((~x.isnan()).to(x.dtype), of, groups) - 1
    baseline = torch.where(others > 0, (_sums(x, of, groups) - x) / others, torch.nan)
    advantages = x - baseline
    if normalize:
        mean, std = _moments(advantages, torch.zeros_like(of), 1)
        advantages = (advantages - mean) / (std + _EPSILON)
    return advantages.nan_to_num(0.0).to(computing_dtype(scores))
