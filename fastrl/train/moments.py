"""Running mean and deviation of a stream of score batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator

_KEPT = ("mean", "std", "var", "count")


@torch.no_grad()
def get_global_statistics(
    accelerator: Accelerator,
    xs: torch.Tensor,
    mask: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean, biased variance and number of the values of all processes.

    Args:
        accelerator: sums over its processes, on its device.
        xs: any shape, floating point.
        mask: the shape of xs, 1 where a value counts; None: everywhere.
        device: of the two scalars returned.
    """
    xs = xs.to(accelerator.device)
    counts = torch.ones_like(xs) if mask is None else mask.to(xs)
    xs = xs.where(counts != 0, 0.0)
    total, count = accelerator.reduce(torch.stack([(xs * counts).sum(), counts.sum()]), "sum")
    mean = total / count
    squares = accelerator.reduce(((xs - mean).square() * counts).sum(), "sum")
    return mean.to(device), (squares / count).to(device), count.item()


class RunningMoments:
    """Mean and unbiased standard deviation of all scores seen so far, over all processes.

    Batches are merged by the parallel update of Chan, Golub and LeVeque (1983). `mean`, `std` and
    `var` are fp64 scalars on the CPU, since squares of large fp32 scores overflow fp32; before the
    first batch they are 0, 1 and 1.

    Args:
        accelerator: sums over its processes.
        mean, std, var, count: of the scores seen before, `var` biased and `count` how many; left
            out, there were none.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        mean: float = 0.0,
        std: float = 1.0,
        var: float = 1.0,
        count: float = 1e-24,
    ) -> None:
        self.accelerator = accelerator
        self.mean, self.std, self.var = torch.tensor([mean, std, var], dtype=torch.float64)
        self.count = count

    def save_to_json(self, json_path: str | Path) -> None:
        """Write the four numbers to a file; the main process does."""
        if self.accelerator.is_main_process:
            numbers = {name: float(getattr(self, name)) for name in _KEPT}
            Path(json_path).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load_from_json(cls, accelerator: Accelerator, json_path: str | Path) -> Self:
        """What `save_to_json` wrote, or TRL's method of that name."""
        numbers = json.loads(Path(json_path).read_text(encoding="utf-8"))
        return cls(accelerator, **{name: numbers[name] for name in _KEPT})

    @torch.no_grad()
    def update(self, scores: torch.Tensor) -> tuple[float, float]:
        """Take in a batch (any shape); returns its own mean and unbiased deviation.

        A first batch of one score has no deviation: `std` is then NaN.
        """
        values = scores.double().cpu()
        if self.accelerator.num_processes == 1:
            mean, var, count = values.mean(), values.var(unbiased=False), values.numel()
        else:
            mean, var, count = get_global_statistics(self.accelerator, values)
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
