"""Operations with a torch reference and native backends. Each file here is one operation."""

from __future__ import annotations

from fastrl.ops._dispatch import BackendUnavailable, forced_backend, use_backend
from fastrl.ops._logits_budget import set_logits_budget
from fastrl.ops.few_rows import few_rows_linear
from fastrl.ops.gae import gae
from fastrl.ops.gated_linear import gated_linear
from fastrl.ops.group_advantages import group_advantages, leave_one_out
from fastrl.ops.linear_nll import linear_nll
from fastrl.ops.linear_token_logprobs import linear_token_logprobs
from fastrl.ops.penalise import penalise
from fastrl.ops.plan_packing import PackingPlan, plan_packing
from fastrl.ops.sample import gumbel_noise, sample
from fastrl.ops.segment_attention import segment_attention
from fastrl.ops.shaped_rewards import shaped_rewards
from fastrl.ops.token_divergence import logits_divergence, token_divergence
from fastrl.ops.token_logprobs import token_logprobs
from fastrl.ops.whiten import whiten

__all__ = [
    "BackendUnavailable",
    "PackingPlan",
    "few_rows_linear",
    "forced_backend",
    "gae",
    "gated_linear",
    "group_advantages",
    "gumbel_noise",
    "leave_one_out",
    "linear_nll",
    "linear_token_logprobs",
    "logits_divergence",
    "penalise",
    "plan_packing",
    "sample",
    "segment_attention",
    "set_logits_budget",
    "shaped_rewards",
    "token_divergence",
    "token_logprobs",
    "use_backend",
    "whiten",
]
