"""Metrics of an optimizer step whose rows were regrouped, put together slice by slice as logged."""

from __future__ import annotations

import torch

from fastrl.train.metrics import Metrics


class SliceMetrics:
    """Sums over the rows of each slice, whatever pass a row is in; everything on the device.

    TRL logs a value for each micro-batch and then their mean. Rows move between passes here, so
    each row adds to the slice that it was drawn into, and `flush` hands on a value a slice.

    Args:
        slices: how many slices the optimizer step has.
        passes: how many passes there will be.
    """

    def __init__(self, slices: int, passes: int) -> None:
        self._slices = slices
        self._passes = passes
        self._sums: dict[str, torch.Tensor] = {}  # name -> (slices, 2)
        self._extremes: dict[tuple[str, str], torch.Tensor] = {}  # (name, kind) -> (slices,)

    def ratio(
        self, name: str, numerator: torch.Tensor, denominator: torch.Tensor, of: torch.Tensor
    ) -> None:
        """Add rows to the sums of their slices.

        Args:
            name: the metric.
            numerator, denominator: (B,) each.
            of: (B,) int64, the slice of each row.
        """
        pair = torch.stack([numerator.detach().float(), denominator.detach().float()], 1)
        if name not in self._sums:
            self._sums[name] = pair.new_zeros(self._slices, 2)
        self._sums[name].index_add_(0, of, pair)

    def least(self, name: str, values: torch.Tensor, of: torch.Tensor) -> None:
        """Hold the smallest value of each slice; values (B,), NaN left out."""
        self._extreme(name, "amin", values.nan_to_num(nan=torch.inf), of)

    def greatest(self, name: str, values: torch.Tensor, of: torch.Tensor) -> None:
        """Hold the largest value of each slice; values (B,), NaN left out."""
        self._extreme(name, "amax", values.nan_to_num(nan=-torch.inf), of)

    def _extreme(self, name: str, kind: str, values: torch.Tensor, of: torch.Tensor) -> None:
        key = (name, kind)
        if key not in self._extremes:
            start = torch.inf if kind == "amin" else -torch.inf
            self._extremes[key] = values.new_full((self._slices,), start)
        self._extremes[key].scatter_reduce_(0, of, values.detach(), kind)

    def flush(self, metrics: Metrics) -> None:
        """Count a pass as done; after the last one give `metrics` a value for each slice."""
        self._passes -= 1
        if self._passes:
            return
        for name, sums in self._sums.items():
            for numerator, denominator in sums:
                metrics.ratio(name, numerator, denominator, at_least=1.0)
        for (name, kind), held in self._extremes.items():
            for value in held:
                if kind == "amin":
                    metrics.least(name, value)
                else:
                    metrics.greatest(name, value)
