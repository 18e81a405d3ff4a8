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


def serves(
    query: torch.Tensor,
    key: torch.Tensor,
    dropout: float,
    window: int | None,
    shared: bool = False,
) -> bool:
    """Whether the fused kernel can take these (1, H, N, Dh) tensors: 16-bit, CUDA, no dropout.

    `shared`: some segments see more keys than they have queries.
    """
    if query.device.type != "cuda" or torch.version.hip is not None or dropout > 0.0:
        return False
    if query.dtype not in _HALF or key.dtype != query.dtype:
        return False
    width = query.shape[-1]
    if width > 256 or width % 8 or torch.cuda.get_device_capability(query.device) < (8, 0):
        return False
    known = _parameters()
    causal = "window_size" in known or (window is None and "is_causal" in known)
    if not causal or "cu_seq_q" not in known:
        return False
    return not shared or aligned(query.device, query.dtype, window is not None)


@functools.cache
def aligned(device: torch.device, dtype: torch.dtype, windowed: bool) -> bool:
    """Whether fewer queries than keys are put at the end of the keys, which torch does not state.

    Asked of the kernel itself, once: with all scores equal, an output is the mean of the values
    that its query sees.
    """
    value = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=dtype, device=device)
    value = value.view(1, 1, 4, 1).expand(1, 1, 4, 64).contiguous()
    zeros = torch.zeros_like(value)
    bounds = torch.tensor([[0, 2], [0, 4]], dtype=torch.int32, device=device)
    with torch.no_grad():
        out = attend(
            zeros[:, :, :2],
            zeros,
            value,
            (bounds[0], bounds[1]),
            (2, 4),
            None,
            2 if windowed else None,
        )
    want = torch.tensor([3.0, 6.0] if windowed else [7 / 3, 15 / 4])
    return torch.allclose(out[0, :, 0, 0].float().cpu(), want, atol=0.05)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: tuple[torch.Tensor, torch.Tensor],
    longest: tuple[int, int],
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Causal attention within the segments `bounds` delimits.

    Args:
        query: (1, H, N, Dh); key, value: (1, Hkv, K, Dh).
        bounds: (segments + 1,) int32 on the same device, of the queries and of the keys; a
            segment's last query is at its last key.
        longest: tokens in the longest segment, of each.

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
    return varlen_attn(q, k, v, *bounds, *longest, **keywords)[None]
