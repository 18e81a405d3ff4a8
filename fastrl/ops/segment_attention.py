"""Attention of segments laid end to end: each sees itself causally, before that all of another.

Segments that continue one segment find its keys where they lie. On the CPU the scores are made in
blocks that stay in the caches and are made again for the gradients (FlashAttention-2, Dao,
arXiv 2307.08691); gradients of shared keys are summed in the order of the segments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from fastrl.ops import _native
from fastrl.ops._dispatch import Op
from fastrl.ops._inputs import require_device, require_floating, require_positive
from fastrl.ops._once import once


@dataclass(frozen=True)
class Segments:
    """Which stretch of a packed row attends to which.

    Segment i is the next `lengths[i]` tokens. It sees itself causally; and before that all of
    segment `after[i]`, if that is not -1, which several segments may continue.
    """

    lengths: tuple[int, ...]
    after: tuple[int, ...]  # each -1, or a segment whose own entry is -1
    # How many of each segment's last tokens have a query; None: all.
    asking: tuple[int, ...] | None = None
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False, kw_only=True)

    @property
    def query_lengths(self) -> tuple[int, ...]:
        """How many queries each segment has."""
        return self.lengths if self.asking is None else self.asking

    @property
    def key_lengths(self) -> list[int]:
        """How many keys each segment sees."""
        before = (0 if other < 0 else self.lengths[other] for other in self.after)
        return [length + more for length, more in zip(self.lengths, before, strict=True)]

    @property
    def shared(self) -> bool:
        """Whether some segment continues another."""
        return max(self.after, default=-1) >= 0

    def keys(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """What each segment sees of a (1, H, N, Dh) tensor of keys or values.

        `split`, not slices: its backward is one concatenation instead of a full-size sum per
        segment, and gradients of a shared stretch are summed in the order of the segments.
        """
        own = tensor.split(self.lengths, dim=2)
        pairs = zip(own, self.after, strict=True)
        return [one if i < 0 else torch.cat([own[i], one], dim=2) for one, i in pairs]

    def band(
        self, queries: int, keys: int, window: int | None, device: torch.device
    ) -> torch.Tensor:
        """(queries, keys) bool: the last query is at the last key; t sees t - window < s <= t."""
        key = (queries, keys, window, device)
        if key not in self._cache:
            ones = torch.ones(queries, keys, dtype=torch.bool, device=device)
            seen = ones.tril(keys - queries)
            self._cache[key] = seen if window is None else seen.triu(keys - queries + 1 - window)
        return self._cache[key]

    def table(self) -> np.ndarray:
        """(3, segments) int64: lengths, after, queries."""
        if "table" not in self._cache:
            rows = (self.lengths, self.after, self.query_lengths)
            self._cache["table"] = np.asarray(rows, dtype=np.int64).reshape(3, -1)
        return self._cache["table"]


class _Reference:
    @staticmethod
    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        segments: Segments,
        scaling: float,
        dropout: float,
        window: int | None,
    ) -> torch.Tensor:
        """One call of torch's attention a segment, its keys written out."""
        parts = [query.transpose(1, 2)[:, :0]]
        splits = (
            query.split(segments.query_lengths, dim=2),
            segments.keys(key),
            segments.keys(value),
        )
        for q, k, v in zip(*splits, strict=True):
            queries, keys = q.shape[2], k.shape[2]
            if queries == 0:
                continue
            band = None
            if queries != keys or (window is not None and window < keys):
                band = segments.band(queries, keys, window, q.device)
            part = scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=band,
                dropout_p=dropout,
                is_causal=band is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
            parts.append(part.transpose(1, 2))
        return torch.cat(parts, dim=1)


def _arguments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scaling: float,
    window: int | None,
) -> tuple[Any, ...]:
    """What both native functions are given first; each tensor's last stride is 1."""
    given = (query, key, value)
    return (
        [tensor.data_ptr() for tensor in given],
        [(tensor.stride(2), tensor.stride(1)) for tensor in given],
        segments.table().ctypes.data,
        len(segments.lengths),
        query.shape[1],
        key.shape[1],
        query.shape[3],
        scaling,
        window or 0,
    )


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        segments: Segments,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        _, heads, queries, width = query.shape
        out = torch.empty(1, queries, heads, width)
        lse = torch.empty(heads, queries)
        _native.load("cpu").segment_attention_forward(
            *_arguments(query, key, value, segments, scaling, window),
            *map(_native.pointer, (out, lse)),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.how = (segments, scaling, window)
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        with torch.no_grad():
            out_gradient = upstream[0].contiguous()
            given = (query, key, value)
            gradients = [torch.empty(1, one.shape[2], one.shape[1], one.shape[3]) for one in given]
            _native.load("cpu").segment_attention_backward(
                *_arguments(*given, *ctx.how),
                *map(_native.pointer, (out, lse, out_gradient)),
                [_native.pointer(gradient) for gradient in gradients],
                torch.get_num_threads(),
            )
        found = (gradient.transpose(1, 2) for gradient in gradients)
        return (*(once("segment_attention", one) for one in found), None, None, None)


class _Cpp:
    @staticmethod
    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        segments: Segments,
        scaling: float,
        dropout: float,
        window: int | None,
    ) -> torch.Tensor:
        """fp32 without dropout; the rest goes through the reference."""
        given = (query, key, value)
        if dropout > 0.0 or any(one.dtype != torch.float32 for one in given):
            return _Reference.attend(query, key, value, segments, scaling, dropout, window)
        dense = (one if one.stride(3) == 1 else one.contiguous() for one in given)
        return _Native.apply(*dense, segments, scaling, window)


SEGMENT_ATTENTION = Op("segment_attention", reference=_Reference, cpp=_Cpp)


def _check_segments(segments: Segments) -> None:
    """Refuse lists that do not fit each other; once for each object."""
    if "checked" in segments._cache:
        return
    count = len(segments.lengths)
    if not len(segments.after) == len(segments.query_lengths) == count:
        raise ValueError(f"segments: lengths, after and asking must all be of {count} segments")
    for i, other in enumerate(segments.after):
        if other != -1 and not (0 <= other < count and segments.after[other] == -1):
            raise ValueError(
                f"segments.after[{i}] is {other}; give -1, or one of the {count} segments that "
                "continues none itself"
            )
    for i, (length, asks) in enumerate(zip(segments.lengths, segments.query_lengths, strict=True)):
        if not 0 <= asks <= length:
            raise ValueError(f"segments.asking[{i}] is {asks}, the segment has {length} tokens")
    segments._cache["checked"] = True


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments) -> None:
    """Refuse tensors that do not fit each other or the segments."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        require_floating(name, tensor)
        if tensor.dim() != 4 or tensor.shape[0] != 1:
            raise ValueError(f"{name} must be (1, H, N, Dh), not of shape {tuple(tensor.shape)}")
        require_device(name, tensor, "query", query)
    if key.shape != value.shape or key.shape[3] != query.shape[3] or query.shape[1] % key.shape[1]:
        raise ValueError(
            f"key and value must both be (1, Hkv, N, {query.shape[3]}) with Hkv dividing "
            f"{query.shape[1]}, got {tuple(key.shape)} and {tuple(value.shape)}"
        )
    _check_segments(segments)
    queries, keys = sum(segments.query_lengths), sum(segments.lengths)
    if (query.shape[2], key.shape[2]) != (queries, keys):
        raise ValueError(
            f"segments describe {queries} queries and {keys} keys, got {query.shape[2]} and "
            f"{key.shape[2]}"
        )


def segment_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scaling: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
) -> torch.Tensor:
    """softmax(scaling · q kᵀ) v, each query over the keys its segment sees up to its own.

    Args:
        query: (1, H, N, Dh), of the tokens that `segments` says ask.
        key, value: (1, Hkv, N, Dh), Hkv dividing H, of all tokens.
        segments: which tokens see which.
        scaling: factor on the scores, more than 0; None for Dh ** -0.5.
        dropout: probability at which weights are left out; above 0 the reference serves.
        window: how many keys a query sees, itself included; None for all before it.

    Returns:
        (1, N, H, Dh) in the query's dtype, one row for each query; differentiable once natively.

    Raises:
        TypeError, ValueError: for tensors that do not fit together, or a factor or window below.
    """
    _check(query, key, value, segments)
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 or None, not {window}")
    if not 0.0 <= dropout <= 1.0:
        raise ValueError(f"dropout must lie within 0 and 1, not {dropout}")
    factor = query.shape[3] ** -0.5 if scaling is None else require_positive("scaling", scaling)
    # A compiler follows torch's own attention, and fuses around it.
    compiling = torch.compiler.is_compiling()
    backend = _Reference if compiling else SEGMENT_ATTENTION.pick(query, key, value)
    return backend.attend(query, key, value, segments, factor, dropout, window)
