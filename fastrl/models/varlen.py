"""The one adapter to torch's `varlen_attn`, whose signature differs between torch versions."""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any

import torch

_HALF = (torch.float16, torch.bfloat16)


@functools.cache
def _parameters() -> frozenset[str]:
    """Names `varlen_attn` accepts in this torch; empty where torch has no such function."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def serves(query: torch.Tensor, key: torch.Tensor, dropout: float, window: int | None) -> bool:
    """Whether the fused kernel can take these (1, H, N, Dh) tensors: 16-bit, CUDA, no dropout."""
    if query.device.type != "cuda" or torch.version.hip is not None or dropout > 0.0:
        return False
    if query.dtype not in _HALF or key.dtype != query.dtype:
        return False
    width = query.shape[-1]
    if width > 256 or width % 8 or torch.cuda.get_device_capability(query.device) < (8, 0):
        return False
    known = _parameters()
    causal = "window_size" in known or (window is None and "is_causal" in known)
    return causal and "cu_seq_q" in known


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Causal attention within the segments `bounds` delimits.

    Args:
        query: (1, H, N, Dh); key, value: (1, Hkv, N, Dh).
        bounds: (segments + 1,) int32 on the same device.
        longest: tokens in the longest segment.

    Returns:
        (1, N, H, Dh).
    """
    from torch.nn.attention.varlen import varlen_attn

    known = _parameters()
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and "enable_gqa" not in known:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
        groups = 1
    keywords: dict[str, Any] = {}
    if groups > 1:
        keywords["enable_gqa"] = True
    if scaling is not None and "scale" in known:
        keywords["scale"] = scaling
    elif scaling is not None:
        # The kernel divides by sqrt(Dh); put the rest of the asked factor into the queries.
        query = query * (scaling * math.sqrt(query.shape[-1]))
    if "window_size" in known:
        keywords["window_size"] = (-1 if window is None else window - 1, 0)
    else:
        keywords["is_causal"] = True
    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    return varlen_attn(q, k, v, bounds, bounds, longest, longest, **keywords)[None]
