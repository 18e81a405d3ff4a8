"""The last layer of a packed pass computes no token that no score depends on.

Above the last attention every token is by itself: one whose hidden state is not read is needed
there for its key and its value alone. The layer is therefore run twice. The first run, over all
tokens, ends where the keys and values are known. The second, over the tokens that are wanted, is
the layer's own forward from its first norm to its last sum; its queries meet the keys and values
of the first. What comes out is 0 at the other tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fastrl.models.attention import PackingRefused, Segments

# A layer with more of its tokens wanted than this runs once, over all of them.
_MOST = 0.9

KEYWORD = "fastrl_segments"


class _Known(Exception):
    """Ends the first run, with the keys and values it was made for."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor) -> None:
        super().__init__("the first run of a layer ends here")
        self.key, self.value = key, value


@dataclass(frozen=True)
class _First:
    """The attention of the first run: it ends it."""

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        dropout: float,
        window: int | None,
    ) -> torch.Tensor:
        """Raise what it was given."""
        raise _Known(key, value)


@dataclass(frozen=True)
class _Second:
    """The attention of the second run: the wanted tokens' queries, the first run's keys."""

    segments: Segments
    key: torch.Tensor
    value: torch.Tensor

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        dropout: float,
        window: int | None,
    ) -> torch.Tensor:
        """As `Segments.attend`, for the wanted tokens."""
        return self.segments.attend(module, query, self.key, self.value, scaling, dropout, window)


def _among(given: Any, tokens: int, kept: torch.Tensor) -> Any:
    """The kept tokens of whatever a layer is given (1, N, …) tensors of, e.g. rotary tables."""
    if isinstance(given, (tuple, list)):
        return type(given)(_among(one, tokens, kept) for one in given)
    if not isinstance(given, torch.Tensor) or given.dim() < 2 or given.shape[:2] != (1, tokens):
        return given
    return given.index_select(1, kept.to(given.device))


def _hooked(layer: nn.Module) -> bool:
    """Whether something watches the modules inside, which a run that ends early would confuse."""
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or hasattr(module, "_hf_hook")
        for module in layer.modules()
        if module is not layer
    )


def _runs_twice(layer: nn.Module, hidden: torch.Tensor, segments: Any) -> bool:
    if not isinstance(segments, Segments) or segments.wanted is None:
        return False
    if not 0 < sum(segments.wanted) <= _MOST * hidden.shape[1]:
        return False
    return not torch.compiler.is_compiling() and not _hooked(layer)


# Named `forward`: a pickled bound method is found again by its name.
def forward(self: nn.Module, hidden_states: torch.Tensor, *args: Any, **keywords: Any) -> Any:
    """A last layer's forward; its class's own unless a packed pass wants some tokens only."""
    whole = type(self).forward
    if not _runs_twice(self, hidden_states, keywords.get(KEYWORD)):
        return whole(self, hidden_states, *args, **keywords)
    if not (getattr(self, "gradient_checkpointing", False) and self.training):
        return _twice(self, whole, keywords, hidden_states, *args)
    # Both runs are repeated as one, by what is behind the checkpoint of the class's own forward.
    behind = getattr(whole, "__wrapped__", whole)
    again: Any = self._gradient_checkpointing_func
    return again(functools.partial(_twice, self, behind, keywords), hidden_states, *args)


def _twice(
    layer: nn.Module,
    whole: Callable[..., Any],
    keywords: dict[str, Any],
    hidden: torch.Tensor,
    *args: Any,
) -> Any:
    segments: Segments = keywords[KEYWORD]
    try:
        whole(layer, hidden, *args, **{**keywords, KEYWORD: _First()})
    except _Known as known:
        second = _Second(segments.of_wanted(), known.key, known.value)
    else:
        raise PackingRefused("the last layer does not call the registered attention function")
    tokens, kept = hidden.shape[1], segments.kept(hidden.device)
    hidden, *args = _among((hidden, *args), tokens, kept)
    keywords = {name: _among(given, tokens, kept) for name, given in keywords.items()}
    found = whole(layer, hidden, *args, **{**keywords, KEYWORD: second})
    if isinstance(found, tuple):
        return (_spread(found[0], tokens, kept), *found[1:])
    return _spread(found, tokens, kept)


def _spread(found: torch.Tensor, tokens: int, kept: torch.Tensor) -> torch.Tensor:
    """(1, N, D) with the wanted tokens in their places and 0 elsewhere."""
    zeros = found.new_zeros(found.shape[0], tokens, *found.shape[2:])
    return zeros.index_copy(1, kept, found)


def _find(model: PreTrainedModel) -> nn.Module | None:
    """The last of the backbone's layers, if one list of them is all there is."""
    depth = getattr(model.config, "num_hidden_layers", None)
    lists = [
        module
        for module in model.base_model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    return lists[0][-1] if len(lists) == 1 else None


def install(model: PreTrainedModel) -> None:
    """Let the model's last layer answer to `Segments.wanted`; nothing else changes.

    Raises:
        PackingRefused: if there is no such layer, or its forward has been replaced.
    """
    layer = _find(model)
    if layer is None:
        raise PackingRefused("its layers are not one list")
    if "forward" in layer.__dict__:
        if getattr(layer.__dict__["forward"], "__func__", None) is forward:
            return
        raise PackingRefused("the forward of its last layer has been replaced")
    layer.forward = forward.__get__(layer)
