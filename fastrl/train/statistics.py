"""Statistics of a step: from nested tensors on a device to plain numbers on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn.utils.rnn import pad_sequence

from fastrl.ops.whiten import whiten

PADDING = -1  # fills ragged statistics and stands for NaN in logged distributions
WANDB_PADDING = PADDING  # TRL's name for it


def flatten_dict(nested: Mapping[str, Any], sep: str = "/") -> dict[str, Any]:
    """`{"a": {"b": 1}}` becomes `{"a/b": 1}`; empty mappings vanish.

    Raises:
        ValueError: if a key already contains the separator.
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if sep in key:
            raise ValueError(f"key {key!r} contains the separator {sep!r}")
        if isinstance(value, Mapping):
            flat.update({f"{key}{sep}{k}": v for k, v in flatten_dict(value, sep).items()})
        else:
            flat[key] = value
    return flat


def stack_dicts(stats_dicts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Per key of the first row: all rows' values flattened, padded with -1, stacked (rows, n)."""
    return {
        key: pad_sequence([row[key].flatten() for row in stats_dicts], True, PADDING)
        for key in stats_dicts[0]
    }


def average_torch_dicts(list_of_dicts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Per key of the first row: the mean over the rows of tensors of one shape."""
    return {
        key: torch.stack([row[key] for row in list_of_dicts]).mean(0) for key in list_of_dicts[0]
    }


def add_suffix(input_dict: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    """The dict with every key lengthened by a suffix."""
    return {f"{key}{suffix}": value for key, value in input_dict.items()}


class Masked:
    """Means and variances over the entries a mask counts: of this process, or of all of them.

    Args:
        mask: any shape, bool or 0/1.
        accelerator: given, counts and means run over all its processes. `mean` then returns this
            process's share, scaled so that the plain average over processes, which is also what
            DDP does to gradients, is the global mean.
    """

    def __init__(self, mask: torch.Tensor, accelerator: Accelerator | None = None) -> None:
        self.mask = mask
        self._accelerator = accelerator
        self._processes = 1 if accelerator is None else accelerator.num_processes
        count = mask.sum()
        self.count = count if accelerator is None else accelerator.reduce(count, "sum")

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """Scalar mean of x; NaN for an empty mask."""
        return (x * self.mask).sum() / (self.count / self._processes)

    def global_mean(self, x: torch.Tensor) -> torch.Tensor:
        """Scalar mean without gradient, the same on every process that shares the statistics."""
        mean = self.mean(x).detach()
        return mean if self._accelerator is None else self._accelerator.reduce(mean, "mean")

    def var(self, x: torch.Tensor) -> torch.Tensor:
        """Unbiased scalar variance (a share, as `mean`); NaN for fewer than two entries."""
        spread = self.mean((x - self.global_mean(x)).square())
        return spread * (self.count / (self.count - 1))

    def whiten(self, x: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
        """x with unit variance over the mask and mean 0, or its own mean if not `shift_mean`."""
        if self._accelerator is None:
            return whiten(x, self.mask, shift_mean=shift_mean)
        mean = self.global_mean(x)
        var = self._accelerator.reduce(self.var(x), "mean")
        scaled = (x - mean) * torch.rsqrt(var + 1e-8)
        return scaled if shift_mean else scaled + mean


def to_host(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors become python floats (one value) or fp32 arrays, in one copy for all the scalars."""
    single = {k: v for k, v in stats.items() if isinstance(v, torch.Tensor) and v.ndim == 0}
    numbers: dict[str, float] = {}
    if single:
        values = torch.stack([v.detach().float() for v in single.values()]).tolist()
        numbers = dict(zip(single, values, strict=True))
    host: dict[str, Any] = {}
    for key, value in stats.items():
        if key in numbers:
            host[key] = numbers[key]
        elif isinstance(value, torch.Tensor):
            array = value.detach().float().cpu().numpy()
            host[key] = array.item() if array.shape == (1,) else array
        elif isinstance(value, np.generic):
            host[key] = value.item()
        else:
            host[key] = value
    return host


def stats_to_np(stats_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors become numpy arrays of their dtype (bf16: fp32), numbers floats; the rest stays."""
    host: dict[str, Any] = {}
    for key, value in stats_dict.items():
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        elif isinstance(value, int | float | np.number | np.bool_):
            value = float(value)
        host[key] = value
    return host


def convert_to_scalar(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors and arrays of one number, of shape () or (1,), become that number."""
    return {
        key: value.item()
        if isinstance(value, torch.Tensor | np.ndarray) and tuple(value.shape) in ((), (1,))
        else value
        for key, value in stats.items()
    }


def check_finite(mask: torch.Tensor, **found: torch.Tensor) -> None:
    """Check tensors (B, T) where the mask counts, in one copy to the host.

    Raises:
        FloatingPointError: naming the first tensor and row that holds a NaN or an infinity.
    """
    broken = torch.stack([(~x.isfinite() & mask.bool()).any(-1) for x in found.values()])
    for name, rows in zip(found, broken.tolist(), strict=True):
        if any(rows):
            raise FloatingPointError(
                f"row {rows.index(True)}: a {name} is not finite before training began; no weight "
                "was changed. The model itself gives NaN or infinite logits for this row"
            )
