"""Running mean and deviation of a stream of score batches."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator


class RunningMoments:
    """Mean and unbiased standard deviation of all scores seen so far, over all processes.

    Batches are merged by the parallel update of Chan, Golub and LeVeque (1983). `mean`, `std` and
    `var` are fp64 scalars on the CPU, since squares of large fp32 scores overflow fp32; before the
    first batch they are 0, 1 and 1.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.mean = torch.zeros((), dtype=torch.float64)
        self.std = torch.ones((), dtype=torch.float64)
        self.var = torch.ones((), dtype=torch.float64)  # biased: mean squared deviation
        self.count = 1e-24

    def _batch_moments(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Mean, biased variance and number of the batch's scores, over all processes."""
        if self.accelerator.num_processes == 1:
            return scores.mean(), scores.var(unbiased=False), scores.numel()
        total, count = self._summed(torch.stack([scores.sum(), scores.new_tensor(scores.numel())]))
        mean = total / count
        squares = self._summed(((scores - mean) ** 2).sum())
        return mean, squares / count, count.item()

    def _summed(self, numbers: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, back on the CPU."""
        return self.accelerator.reduce(numbers.to(self.accelerator.device), "sum").cpu()

    @torch.no_grad()
    def update(self, scores: torch.Tensor) -> tuple[float, float]:
        """Take in a batch (any shape); returns its own mean and unbiased deviation.

        A first batch of one score has no deviation: `std` is then NaN.
        """
        mean, var, count = self._batch_moments(scores.double().cpu())
        delta = mean - self.mean
        total = self.count + count
        squares = var * count + self.var * self.count + delta**2 * self.count * count / total
        self.mean = self.mean + delta * count / total
        self.var = squares / total
        unbiased = total / (total - 1) if total > 1 else float("nan")
        self.std = (self.var * unbiased).sqrt()
        self.count = total
        spread = float("nan") if count == 1 else (var * count / (count - 1)).sqrt().item()
        return mean.item(), spread


def scaled_scores(scores: list[torch.Tensor], running: RunningMoments, config: Any) -> torch.Tensor:
    """Scores (B,) divided by the running deviation, centred and clipped as the config says.

    The config's `use_score_scaling`, `use_score_norm` and `score_clip` decide; floating scores keep
    their dtype, whole numbers become fp32.

    Raises:
        ValueError: if scores are to be scaled and only one has ever been seen.
    """
    total = torch.stack([score.reshape(()) for score in scores])
    if not total.is_floating_point():
        total = total.float()
    if config.use_score_scaling:
        if running.count + total.numel() * running.accelerator.num_processes < 2:
            raise ValueError(
                "use_score_scaling: one score has no deviation to divide by; the first step needs "
                "a batch_size of at least 2"
            )
        running.update(total)
        scale = running.std.to(total) + torch.finfo(total.dtype).eps
        shift = running.mean.to(total) if config.use_score_norm else 0
        total = (total - shift) / scale
    if config.score_clip is not None:
        total = total.float().clamp(-config.score_clip, config.score_clip).to(total.dtype)
    return total
