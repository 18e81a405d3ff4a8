"""Operations with a torch reference and native backends. Each file here is one operation."""

from __future__ import annotations

from fastrl.ops._dispatch import BackendUnavailable, forced_backend, use_backend
from fastrl.ops.gae import gae
from fastrl.ops.penalise import penalise
from fastrl.ops.plan_packing import PackingPlan, plan_packing
from fastrl.ops.sample import gumbel_noise, sample
from fastrl.ops.shaped_rewards import shaped_rewards
from fastrl.ops.whiten import whiten

__all__ = [
    "BackendUnavailable",
    "PackingPlan",
    "forced_backend",
    "gae",
    "gumbel_noise",
    "penalise",
    "plan_packing",
    "sample",
    "shaped_rewards",
    "use_backend",
    "whiten",
]
