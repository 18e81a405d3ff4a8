"""A model whose parameters are spread over processes: every pass needs every rank."""

from __future__ import annotations

import torch
import torch.distributed as dist

from fastrl.models.attention import Segments
from fastrl.rollout.serving import Served


class Lockstep:
    """Keeps ranks that are done passing one token until the slowest is done.

    A pass of such a model gathers its weights from all ranks, so a rank that stopped calling it
    would leave the others waiting for ever. For any other model this costs nothing.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self._on = served.partitioned and dist.is_initialized() and dist.get_world_size() > 1

    def anyone(self, here: bool) -> bool:
        """Whether any rank has rows left."""
        if not self._on:
            return here
        flag = torch.tensor(int(here), device=self._served.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    def idle(self) -> None:
        """Pass one token along with the others."""
        if not self._on:
            return
        zero = torch.zeros(1, dtype=torch.int64, device=self._served.device)
        self._served.logits(zero, zero, Segments.of_lengths([1]))
