"""Attention over rows laid end to end, behind transformers' `AttentionInterface`.

A model's attention name is changed once, from e.g. `"sdpa"` to `"fastrl_sdpa"`, and stays: a pass
decides by the keyword `fastrl_segments`. Without it the call goes to the attention and mask
functions the model had before, so `generate` and plain calls are as they were; with it each
segment attends to itself alone. The name must not be switched per pass: gradient checkpointing
runs the forward again during backward.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fastrl.models import varlen
from fastrl.ops.segment_attention import Segments as Seen
from fastrl.ops.segment_attention import segment_attention

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


class Attends(Protocol):
    """What `fastrl_segments` may be: it computes the attention of one layer of a packed pass."""

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        dropout: float,
        window: int | None,
    ) -> torch.Tensor:
        """(1, N, H, Dh) for a query (1, H, N, Dh), a key and a value (1, Hkv, N, Dh)."""


@dataclass(frozen=True)
class Segments(Seen):
    """Which stretch of the packed row attends to which, and what of it the model is to know."""

    # How many of each segment's last tokens have a hidden state that is read; None: all.
    wanted: tuple[int, ...] | None = None
    windows: list[int | None] | None = None  # if a list: each layer appends its sliding window

    @staticmethod
    def of_lengths(lengths: list[int]) -> Segments:
        """Rows of these lengths end to end, each attending to itself."""
        return Segments(tuple(lengths), (-1,) * len(lengths))

    @property
    def offset(self) -> bool:
        """Whether some segment has other keys than those of its queries."""
        return self.shared or self.asking is not None

    def of_wanted(self) -> Segments:
        """The same keys, with queries of the wanted tokens only."""
        return replace(self, wanted=None, asking=self.wanted, _cache={})

    def kept(self, device: torch.device) -> torch.Tensor:
        """(sum of `wanted`,) int64 places of the wanted tokens in the row."""
        if "kept" not in self._cache:
            wanted = self.lengths if self.wanted is None else self.wanted
            ends = itertools.accumulate(self.lengths)
            places = [range(end - n, end) for end, n in zip(ends, wanted, strict=True)]
            joined = torch.tensor(list(itertools.chain.from_iterable(places)), dtype=torch.int64)
            self._cache["kept"] = joined.to(device)
        return self._cache["kept"]

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        dropout: float,
        window: int | None,
    ) -> torch.Tensor:
        """As `attend_segments`."""
        if self.windows is not None:
            self.windows.append(window)
        return attend_segments(query, key, value, self, scaling, dropout, window)

    def bounds(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(segments + 1,) int32 starts of the queries and N; the same of the keys."""
        if device not in self._cache:
            lengths = torch.tensor([self.query_lengths, self.key_lengths], dtype=torch.int32)
            bounds = torch.nn.functional.pad(lengths.cumsum(1, dtype=torch.int32), (1, 0))
            self._cache[device] = bounds.to(device).unbind()
        return self._cache[device]


def attend_segments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scaling: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
) -> torch.Tensor:
    """Causal attention of each segment to what it sees.

    Args:
        query: (1, H, N, Dh), of the tokens that `segments` says ask.
        key, value: (1, Hkv, N, Dh), Hkv dividing H, of all tokens.
        scaling: factor on the scores; None means Dh ** -0.5.
        window: how many keys a query sees, itself included; None means all before it.

    Returns:
        (1, N, H, Dh), the layout transformers' attention functions return.
    """
    if varlen.serves(query, key, dropout, window, segments.offset):
        return _fused(query, key, value, segments, scaling, window)
    how = (segments, scaling, dropout, window)
    return segment_attention(query, key, value, *how)


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    longest = (max(segments.query_lengths), max(segments.key_lengths))
    if segments.shared:
        key, value = (torch.cat(segments.keys(tensor), dim=2) for tensor in (key, value))
    bounds = segments.bounds(query.device)
    return varlen.attend(query, key, value, bounds, longest, scaling, window)


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


# Compiled, it would be compiled again for the lengths of every batch; what is around it is not.
@torch.compiler.disable
def _packed_call(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Attends,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    reason = _refusal(module, query, keywords)
    if reason is not None:
        raise PackingRefused(f"{type(module).__name__}: {reason}")
    return segments.attend(module, query, key, value, scaling, dropout, sliding_window), None


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
        fastrl_segments: Attends | None = None,
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
