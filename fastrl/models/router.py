"""The load-balancing loss of a mixture of experts, as the model's own file computes it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

KEYWORD = "output_router_logits"
# A file of transformers with this function and these arguments is one whose routers we can ask for.
_LOSS = "load_balancing_loss_func"
_ARGUMENTS = ["gate_logits", "num_experts", "top_k", "attention_mask"]

Gates = tuple[torch.Tensor, ...]  # per layer (tokens, experts): logits of the router


def present(model: PreTrainedModel) -> bool:
    """Whether the model's forward can be asked for a router's loss."""
    return KEYWORD in inspect.signature(type(model).forward).parameters


def _loss_function(model: PreTrainedModel) -> Callable[..., Any] | None:
    return getattr(sys.modules[type(model).__module__], _LOSS, None)


def from_gates(model: PreTrainedModel) -> bool:
    """Whether `loss` serves the model; else its own forward has to be asked."""
    function = _loss_function(model)
    if function is None or list(inspect.signature(function).parameters) != _ARGUMENTS:
        return False
    return all(hasattr(model, name) for name in ("num_experts", "num_experts_per_tok"))


def loss(model: PreTrainedModel, gates: list[Gates], mask: torch.Tensor | None) -> torch.Tensor:
    """The loss over the tokens of all batches (Switch Transformer, equations 4 to 6).

    Args:
        model: one `from_gates` holds for.
        gates: of each batch.
        mask: (rows, columns) of the one padded batch; None: there is no padding.
    """
    function = _loss_function(model)
    assert function is not None
    layers = gates[0] if len(gates) == 1 else tuple(map(torch.cat, zip(*gates, strict=True)))
    return function(layers, model.num_experts, model.num_experts_per_tok, mask)
