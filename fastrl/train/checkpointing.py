"""Gradient checkpointing that keeps what attention gave and recomputes the rest."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

KEY = "selective"
_ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)


@functools.cache
def _kept() -> frozenset[Any]:
    """The overloads of attention this torch has."""
    found = [getattr(torch.ops.aten, name, None) for name in _ATTENTION]
    varlen = getattr(torch.ops.torch_attn, "_varlen_attn", None)
    packets = [packet for packet in (*found, varlen) if packet is not None]
    return frozenset(getattr(p, name) for p in packets for name in p.overloads())


def _decide(context: Any, operation: Any, *args: Any, **keywords: Any) -> CheckpointPolicy:
    if operation in _kept():
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _contexts() -> Any:
    return create_selective_checkpoint_contexts(_decide)


def resolve(enabled: bool, keywords: dict[str, Any] | None) -> dict[str, Any] | None:
    """Keywords of torch's checkpoint, from `gradient_checkpointing_kwargs`.

    `{"selective": True}` keeps the outputs of attention, which cost much to compute and little to
    keep, so that only the cheaper rest of a layer runs twice.

    Raises:
        ValueError: for selective without checkpointing, or with the reentrant form, which cannot.
    """
    if not keywords or KEY not in keywords:
        return keywords
    rest = {name: value for name, value in keywords.items() if name != KEY}
    if not keywords[KEY]:
        return rest or None
    if not enabled:
        raise ValueError(
            "gradient_checkpointing_kwargs={'selective': True} needs gradient_checkpointing=True"
        )
    if rest.get("use_reentrant"):
        raise ValueError(
            "gradient_checkpointing_kwargs: 'selective' needs the form that is not reentrant; "
            "leave use_reentrant out"
        )
    return {**rest, "use_reentrant": False, "context_fn": _contexts}
