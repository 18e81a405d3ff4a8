"""Attention over rows laid end to end, behind transformers' `AttentionInterface`.

A model's attention name is changed once, from e.g. `"sdpa"` to `"fastrl_sdpa"`, and stays: a pass
decides by the keyword `fastrl_segments`. Without it the call goes to the attention and mask
functions the model had before, so `generate` and plain calls are as they were; with it each
segment attends to itself alone. The name must not be switched per pass: gradient checkpointing
runs the forward again during backward.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fastrl.models import varlen

PREFIX = "fastrl_"
SERVED = ("sdpa", "eager")

# Keywords handed to every attention function that change nothing in a packed pass.
_NEUTRAL = {
    "position_ids",
    "cache_position",
    "output_hidden_states",
    "return_dict",
    "output_router_logits",
}


class PackingRefused(RuntimeError):
    """Packed attention was asked for something it does not compute; the message says what."""


@dataclass(frozen=True)
class Segments:
    """Which stretch of the packed row attends to which.

    `q[i]` and `k[i]` are half-open ranges over the N packed tokens. Queries are aligned with the
    end of their keys: the last query of a segment sees its last key. Ranges in `q` follow one
    another from 0 to N.
    """

    q: tuple[tuple[int, int], ...]
    k: tuple[tuple[int, int], ...]
    windows: list[int | None] | None = None  # if a list: each layer appends its sliding window
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.q != self.k:
            raise PackingRefused("segments whose keys differ from their queries are not served")

    @staticmethod
    def of_lengths(lengths: list[int], windows: list[int | None] | None = None) -> Segments:
        """Rows of these lengths end to end, each attending to itself."""
        ranges = []
        start = 0
        for length in lengths:
            ranges.append((start, start + length))
            start += length
        return Segments(tuple(ranges), tuple(ranges), windows)

    @property
    def lengths(self) -> list[int]:
        """Tokens in each segment."""
        return [end - start for start, end in self.q]

    def bounds(self, device: torch.device) -> torch.Tensor:
        """(segments + 1,) int32 starts of the segments and N, copied to the device once."""
        if device not in self._cache:
            bounds = [0, *(end for _, end in self.q)]
            self._cache[device] = torch.tensor(bounds, dtype=torch.int32, device=device)
        return self._cache[device]

    def band(self, length: int, window: int, device: torch.device) -> torch.Tensor:
        """(length, length) bool: query t sees the keys t - window < s <= t."""
        key = (length, window, device)
        if key not in self._cache:
            causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
            self._cache[key] = causal.triu(1 - window)
        return self._cache[key]


def attend_segments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scaling: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
) -> torch.Tensor:
    """Causal attention of each segment to itself.

    Args:
        query: (1, H, N, Dh).
        key, value: (1, Hkv, N, Dh), Hkv dividing H.
        scaling: factor on the scores; None means Dh ** -0.5.
        window: how many keys a query sees, itself included; None means all before it.

    Returns:
        (1, N, H, Dh), the layout transformers' attention functions return.
    """
    if varlen.serves(query, key, dropout, window):
        bounds = segments.bounds(query.device)
        return varlen.attend(query, key, value, bounds, max(segments.lengths), scaling, window)
    lengths = segments.lengths
    grouped = query.shape[1] != key.shape[1]
    parts = []
    # `split`, not slices: its backward is one concatenation instead of a full-size sum per segment.
    splits = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    for q, k, v in zip(*splits, strict=True):
        length = q.shape[2]
        band = None
        if window is not None and window < length:
            band = segments.band(length, window, q.device)
        part = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=band,
            dropout_p=dropout,
            is_causal=band is None,
            scale=scaling,
            enable_gqa=grouped,
        )
        parts.append(part.transpose(1, 2))
    return torch.cat(parts, dim=1)


def _refusal(module: torch.nn.Module, query: torch.Tensor, keywords: dict[str, Any]) -> str | None:
    """Why these keywords of an attention call cannot be honoured packed, or None."""
    if query.shape[0] != 1:
        return f"packed rows lie in one row, the attention got {query.shape[0]}"
    causal = keywords.pop("is_causal", None)
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        return "the attention is not causal"
    for name, given in keywords.items():
        if name not in _NEUTRAL and given is not None and given is not False:
            return f"the attention is given {name}, which packed attention does not compute"
    return None


def _packed_call(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    reason = _refusal(module, query, keywords)
    if reason is not None:
        raise PackingRefused(f"{type(module).__name__}: {reason}")
    if segments.windows is not None:
        segments.windows.append(sliding_window)
    return attend_segments(query, key, value, segments, scaling, dropout, sliding_window), None


def _original(module: torch.nn.Module, name: str) -> Callable[..., Any]:
    """The attention function the model's own file would have taken for this name."""
    home = sys.modules[type(module).__module__]
    table = getattr(home, "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
    eager: Any = getattr(home, "eager_attention_forward", None)
    return table.get_interface(name, eager)


def _dispatcher(name: str) -> Callable[..., Any]:
    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *args: Any,
        fastrl_segments: Segments | None = None,
        **keywords: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if fastrl_segments is None:
            original = _original(module, name)
            return original(module, query, key, value, attention_mask, *args, **keywords)
        return _packed_call(module, query, key, value, fastrl_segments, *args, **keywords)

    return attend


def enabled(config: PreTrainedConfig) -> bool:
    """Whether models with this config answer to `fastrl_segments`."""
    return (config._attn_implementation or "").startswith(PREFIX)


def enable(config: PreTrainedConfig) -> None:
    """Let models with this config answer to `fastrl_segments`; all else stays as it was.

    Raises:
        PackingRefused: if the attention in use is not one of `SERVED`.
    """
    name = config._attn_implementation
    if enabled(config):
        return
    if name not in SERVED:
        raise PackingRefused(f"attn_implementation={name!r} is not one of {', '.join(SERVED)}")
    AttentionInterface.register(PREFIX + name, _dispatcher(name))
    AttentionMaskInterface.register(PREFIX + name, ALL_MASK_ATTENTION_FUNCTIONS[name])
    config._attn_implementation = PREFIX + name


def disable(config: PreTrainedConfig) -> None:
    """Give the config its own attention back (used when the handshake fails)."""
    if enabled(config):
        config._attn_implementation = config._attn_implementation.removeprefix(PREFIX)
