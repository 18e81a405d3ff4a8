"""The one door to a model: a forward that also answers scoring requests.

`install` gives a transformers instance a forward that behaves as its own unless it is called with
the private keyword `fastrl_request`. Then it runs backbone, gather of the scored places and head
inside itself, so that whatever wraps the instance (DDP, FSDP, ZeRO, autocast, PEFT) sees one
ordinary forward call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fastrl.models.layout import Batch
from fastrl.ops.linear_token_logprobs import linear_token_logprobs
from fastrl.ops.token_logprobs import token_logprobs

_ORIGINAL = "_fastrl_original_forward"
_MARK = "_fastrl_door"


@dataclass(frozen=True)
class Head:
    """What lies between the last hidden state and the logits, besides the matrix.

    logits = softcap * tanh(h Wᵀ * scale / softcap); no softcap: h Wᵀ * scale.
    """

    scale: float = 1.0
    softcap: float | None = None

    @staticmethod
    def of_config(config: Any) -> Head:
        """The scale and cap a config states, under the names its family uses."""
        scale = 1.0
        scale *= getattr(config, "logit_scale", None) or 1.0  # Cohere
        scale *= getattr(config, "lm_head_multiplier", None) or 1.0  # Falcon-H1
        scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
        return Head(float(scale), getattr(config, "final_logit_softcapping", None))


@dataclass(frozen=True)
class Request:
    """Score these batches. The answer is (logp, entropy, hidden or None), batches end to end.

    logp, entropy: (S,) fp32; hidden: (S, D), the last hidden states at the scored places.
    """

    batches: tuple[Batch, ...]
    temperature: float
    head: Head | None  # None: take the logits from the model's own forward
    want_hidden: bool = False

    def with_hidden(self) -> Request:
        """The same, with the hidden states in the answer."""
        return replace(self, want_hidden=True)


Answer = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def head_matrix(head: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """(weight, bias) of a head that is nothing but a matrix now; None if it must be called."""
    if type(head) is not nn.Linear or "forward" in head.__dict__:
        return None
    if head._forward_hooks or head._forward_pre_hooks:
        return None
    if head._backward_hooks or head._backward_pre_hooks:
        return None
    for parameter in (head.weight, head.bias):
        if parameter is None:
            continue
        plain = type(parameter) in (nn.Parameter, torch.Tensor) and not hasattr(parameter, "ds_id")
        if not plain or not parameter.is_floating_point():
            return None
    return head.weight, head.bias


def _score(
    head: nn.Module, how: Head, hidden: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logp, entropy) from (S, D) hidden states through the head, as a matrix if it is one."""
    matrix = head_matrix(head)
    if matrix is None:
        logits = head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * how.scale
        if how.softcap is not None:
            logits = how.softcap * torch.tanh(logits / how.softcap)
        return token_logprobs(logits, targets, temperature)
    weight, bias = matrix
    dtype = weight.dtype
    if torch.is_autocast_enabled(hidden.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(hidden.device.type)
    return linear_token_logprobs(
        hidden.to(dtype),
        weight.to(dtype),
        targets,
        bias=None if bias is None else bias.to(dtype),
        temperature=temperature,
        softcap=how.softcap,
        scale=how.scale,
    )


def _from_hidden(model: PreTrainedModel, how: Head, batch: Batch, temperature: float) -> Answer:
    """Backbone, gather, head."""
    output = model.base_model(**batch.inputs)
    states = output[0] if isinstance(output, tuple) else output.last_hidden_state
    hidden = states.reshape(-1, states.shape[-1]).index_select(0, batch.rows.to(states.device))
    head = model.get_output_embeddings()
    return *_score(head, how, hidden, batch.targets, temperature), hidden


def _from_logits(forward: Callable[..., Any], batch: Batch, request: Request) -> Answer:
    """The model's own forward, its logits cut to the scored columns where the model can do that."""
    inputs = dict(batch.inputs)
    count, columns = inputs["input_ids"].shape
    places = batch.rows
    if "logits_to_keep" in inspect.signature(forward).parameters and count == 1:
        inputs["logits_to_keep"] = batch.rows
        places = torch.arange(len(batch.rows), device=batch.rows.device)
    elif "logits_to_keep" in inspect.signature(forward).parameters:
        kept = columns - batch.first_column
        inputs["logits_to_keep"] = kept
        places = places // columns * kept + places % columns - batch.first_column
    if request.want_hidden:
        inputs["output_hidden_states"] = True
    output = forward(**inputs)
    logits = output.logits.reshape(-1, output.logits.shape[-1])
    logits = logits.index_select(0, places.to(logits.device))
    logp, entropy = token_logprobs(logits, batch.targets, request.temperature)
    if not request.want_hidden:
        return logp, entropy, None
    hidden = output.hidden_states[-1]
    hidden = hidden.reshape(-1, hidden.shape[-1])
    return logp, entropy, hidden.index_select(0, batch.rows.to(hidden.device))


def original_forward(model: PreTrainedModel) -> Callable[..., Any]:
    """The bound forward the instance had before the door."""
    own = model.__dict__.get(_ORIGINAL)
    return type(model).forward.__get__(model) if own is None else own


def _answer(model: PreTrainedModel, request: Request) -> Answer:
    parts = []
    for batch in request.batches:
        if request.head is None:
            parts.append(_from_logits(original_forward(model), batch, request))
        else:
            parts.append(_from_hidden(model, request.head, batch, request.temperature))
    if len(parts) > 1:
        logp, entropy = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        hidden = torch.cat([part[2] for part in parts]) if request.want_hidden else None
    else:
        logp, entropy, hidden = parts[0]
    return logp, entropy, hidden if request.want_hidden else None


def _make_forward(model: PreTrainedModel) -> Callable[..., Any]:
    # Named `forward`: a pickled bound method is found again by its name.
    def forward(self: PreTrainedModel, *args: Any, **keywords: Any) -> Any:
        request = keywords.pop("fastrl_request", None)
        if request is not None:
            return _answer(self, request)
        return original_forward(self)(*args, **keywords)

    # `generate` and the trainers read the signature to learn what the model takes.
    forward.__dict__["__signature__"] = inspect.signature(type(model).forward)
    forward.__dict__[_MARK] = True
    return forward


def installed(model: PreTrainedModel) -> bool:
    """Whether the instance's forward is, or wraps, the door."""
    forward = model.__dict__.get("forward")
    while forward is not None:
        if getattr(forward, _MARK, False):
            return True
        forward = getattr(forward, "__wrapped__", None)
    return False


def install(model: PreTrainedModel) -> None:
    """Give the instance the door, once; a forward set on it before stays in use behind it."""
    if installed(model):
        return
    if "forward" in model.__dict__:
        model.__dict__[_ORIGINAL] = model.__dict__["forward"]
    model.forward = _make_forward(model).__get__(model)
