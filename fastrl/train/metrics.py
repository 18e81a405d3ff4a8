"""Metrics of training: summed on the device, copied to the host once per logging step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from accelerate import Accelerator

Kind = Literal["ratio", "gap", "pool", "min", "max"]
Key = tuple[str, Kind]


class Metrics:
    """Averages over micro-steps, as TRL logs them, without a wait in between.

    A micro-step's value is a ratio over all processes (sum of numerators by sum of denominators),
    or the extreme over all of them. What is logged is the plain mean over micro-steps; those whose
    denominator is 0 on every process, and those whose extreme is not finite, do not count. What is
    pooled is instead the sum of all numerators by that of all denominators.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        # key -> per micro-step a (2,) fp32 (numerator, denominator), or the extreme and 1; for a
        # gap (4,), two ratios
        self._held: dict[Key, list[torch.Tensor]] = {}
        self._least_denominator: dict[str, float] = {}

    def ratio(
        self,
        name: str,
        numerator: torch.Tensor,
        denominator: torch.Tensor | float,
        at_least: float = 0.0,
    ) -> None:
        """Add a micro-step's numerator / denominator; scalars of this process.

        With `at_least` the denominator is no less than that, so that none counts as 0.
        """
        self._least_denominator[name] = at_least
        self._add((name, "ratio"), numerator, denominator)

    def mean(self, name: str, values: torch.Tensor) -> None:
        """Add a micro-step's mean over all entries of `values`, of all processes; may be empty."""
        self._add((name, "ratio"), values.detach().float().sum(), values.numel())

    def gap(
        self,
        name: str,
        left: tuple[torch.Tensor, torch.Tensor],
        right: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        """Add the left ratio less the right; left out where a denominator is 0 everywhere."""
        quad = torch.stack([part.detach().float() for part in (*left, *right)])
        self._held.setdefault((name, "gap"), []).append(quad)

    def pool(self, name: str, numerator: torch.Tensor, denominator: torch.Tensor) -> None:
        """Add to the numerator and denominator of one ratio over all micro-steps."""
        self._add((name, "pool"), numerator, denominator)

    def least(self, name: str, values: torch.Tensor) -> None:
        """Add a micro-step's smallest entry."""
        self._add((name, "min"), values.detach().min(), 1.0)

    def greatest(self, name: str, values: torch.Tensor) -> None:
        """Add a micro-step's largest entry."""
        self._add((name, "max"), values.detach().max(), 1.0)

    def _add(self, key: Key, first: torch.Tensor, second: torch.Tensor | float) -> None:
        first = first.detach().float()
        if isinstance(second, torch.Tensor):
            pair = torch.stack([first, second.detach().to(first)])
        else:
            pair = torch.stack([first, torch.full_like(first, second)])
        self._held.setdefault(key, []).append(pair)

    def collect(self) -> dict[str, float]:
        """The means since the last call, and a fresh start; every process must call it.

        One reduction per kind and one copy to the host, whatever the number of metrics.
        """
        held, self._held = self._held, {}
        found: dict[str, float] = {}
        for kind in ("ratio", "gap", "pool", "min", "max"):
            names = [name for name, of in held if of == kind]
            if names:
                found.update(self._means(kind, names, held))
        return found

    def _means(
        self, kind: Kind, names: list[str], held: Mapping[Key, list[torch.Tensor]]
    ) -> dict[str, float]:
        steps = [torch.stack(held[name, kind]) for name in names]  # each (micro-steps, 2 or 4)
        joined = torch.cat(steps)
        if self._accelerator.num_processes > 1:
            gathered = self._accelerator.gather(joined[None])  # (processes, rows, 2)
            joined = _over_processes(kind, gathered)
        found = {}
        rows = joined.cpu()
        for name, own in zip(names, rows.split([len(s) for s in steps]), strict=True):
            if kind == "pool":
                own = own.double().sum(0, keepdim=True)
            if kind == "ratio":
                own[:, 1].clamp_(min=self._least_denominator.get(name, 0.0))
            counted = own[(own[:, 1::2] != 0).all(1)].double()
            if kind in ("min", "max"):
                counted = counted[counted.isfinite().all(1)]
            if len(counted):
                values = counted[:, 0::2] / counted[:, 1::2]
                found[name] = (values[:, 0] - values[:, 1:].sum(1)).mean().item()
        return found


def _over_processes(kind: Kind, gathered: torch.Tensor) -> torch.Tensor:
    if kind in ("ratio", "gap", "pool"):
        return gathered.sum(0)
    return gathered.amin(0) if kind == "min" else gathered.amax(0)
