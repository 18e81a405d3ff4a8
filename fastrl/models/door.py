"""The one door to a model: a forward that also answers scoring requests.

`install` gives a transformers instance a forward that behaves as its own unless it is called with
the private keyword `fastrl_request`. Then it runs backbone, gather of the scored places and head
inside itself, so that whatever wraps the instance (DDP, FSDP, ZeRO, autocast, PEFT) sees one
ordinary forward call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from fastrl.models import noise, router
from fastrl.models.layout import Batch
from fastrl.ops._linear_tiles import STATISTICS, statistics_of
from fastrl.ops.linear_token_logprobs import linear_token_logprobs
from fastrl.ops.token_logprobs import token_logprobs

_ORIGINAL = "_fastrl_original_forward"
_MARK = "_fastrl_door"
_STAT_ROWS = 256  # rows of logits whose statistics are made at once


_INNER = ("_orig_mod", "module", "_fsdp_wrapped_module", "pretrained_model", "policy")


def find(model: nn.Module) -> tuple[PreTrainedModel, bool]:
    """The transformers instance inside, and whether a soft prompt is put before its input."""
    inside: Any = model
    soft_prompt = False
    while not isinstance(inside, PreTrainedModel):
        step = next((inside._modules[name] for name in _INNER if name in inside._modules), None)
        if step is None and hasattr(inside, "get_base_model"):
            soft_prompt = inside.active_peft_config.is_prompt_learning
            step = inside.get_base_model()
        if step is None:
            raise TypeError(
                f"model: found no transformers model inside {type(model).__name__}; give a "
                "PreTrainedModel, or one wrapped by PEFT, a value head, DDP, FSDP or torch.compile"
            )
        inside = step
    return inside, soft_prompt


@dataclass(frozen=True)
class Head:
    """What lies between the last hidden state and the logits, besides the matrix.

    logits = softcap * tanh(h Wᵀ * scale / softcap); no softcap: h Wᵀ * scale.
    """

    scale: float = 1.0
    softcap: float | None = None
    fp32: bool = False  # compute the logits in fp32, whatever autocast and the matrix say

    @staticmethod
    def of_config(config: Any) -> Head:
        """The scale and cap a config states, under the names its family uses."""
        scale = 1.0
        scale *= getattr(config, "logit_scale", None) or 1.0  # Cohere
        scale *= getattr(config, "lm_head_multiplier", None) or 1.0  # Falcon-H1
        scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
        return Head(float(scale), getattr(config, "final_logit_softcapping", None))


class Answer(NamedTuple):
    """What a request is answered with, batches end to end; DDP finds the tensors in it."""

    logp: torch.Tensor  # (K,) fp32
    entropy: torch.Tensor  # (K,) fp32
    stats: dict[str, torch.Tensor]  # (K,) fp32 each, those asked for
    hidden: torch.Tensor | None = None  # (K, D) the last hidden states at the scored places
    values: torch.Tensor | None = None  # (K,) fp32, of a value head
    aux_loss: torch.Tensor | None = None  # scalar


@dataclass(frozen=True)
class Request:
    """Score these batches."""

    batches: tuple[Batch, ...]
    temperature: float
    head: Head | None  # None: take the logits from the model's own forward
    want_hidden: bool = False
    stats: tuple[str, ...] = ()  # names `linear_token_logprobs` knows
    aux_loss: bool = False  # the model has a router and its loss is wanted

    def with_hidden(self) -> Request:
        """The same, with the hidden states in the answer."""
        return replace(self, want_hidden=True)

    # A compiler cannot follow a request's lists and caches; it compiles what the model computes.
    @torch.compiler.disable(recursive=False)
    def answer(self, model: PreTrainedModel) -> Answer:
        """Run the model; called by its forward."""
        step = _from_logits if self.head is None else _from_hidden
        parts, gates = zip(*(step(model, batch, self) for batch in self.batches), strict=True)
        joined = _joined(parts)
        if self.aux_loss and self.head is not None:
            mask = self.batches[0].inputs["attention_mask"]
            loss = router.loss(model, list(gates), mask if mask.dim() == 2 else None)
            joined = joined._replace(aux_loss=loss)
        return joined if self.want_hidden else joined._replace(hidden=None)


def _joined(parts: tuple[Answer, ...]) -> Answer:
    if len(parts) == 1:
        return parts[0]
    logp, entropy, stats, hidden, *_ = zip(*parts, strict=True)
    tables = {name: torch.cat([table[name] for table in stats]) for name in stats[0]}
    states = None if hidden[0] is None else torch.cat(hidden)
    return Answer(torch.cat(logp), torch.cat(entropy), tables, states)


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


Scored = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


def scores_of_logits(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float, stats: tuple[str, ...]
) -> Scored:
    """(logp, entropy, stats) from (K, V) logits."""
    logp, entropy = token_logprobs(logits, targets, temperature)
    if not stats:
        return logp, entropy, {}
    tables = []
    with torch.no_grad():
        pieces = zip(logits.split(_STAT_ROWS), targets.split(_STAT_ROWS), strict=True)
        for piece, target in pieces:
            lse = torch.logsumexp(piece.to(logp.dtype) / temperature, dim=-1)
            tables.append(statistics_of(piece, target, lse, temperature))
    table = dict(zip(STATISTICS, torch.cat(tables, dim=1), strict=True))
    return logp, entropy, {name: table[name] for name in stats}


def logits_by(head: nn.Module, how: Head, hidden: torch.Tensor) -> torch.Tensor:
    """(K, V) logits in fp32 or wider of (K, D) hidden states, by calling the head."""
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * how.scale
    if how.softcap is not None:
        logits = how.softcap * torch.tanh(logits / how.softcap)
    return logits


def product_dtype(weight: torch.Tensor, how: Head) -> torch.dtype:
    """The dtype in which hidden states meet a head's matrix here and now."""
    device = weight.device.type
    if how.fp32:
        return torch.promote_types(weight.dtype, torch.float32)
    if torch.is_autocast_enabled(device) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return weight.dtype


def _score(
    head: nn.Module, how: Head, hidden: torch.Tensor, targets: torch.Tensor, request: Request
) -> Scored:
    """(logp, entropy, stats) from (K, D) hidden states through the head, as a matrix if it is."""
    matrix = head_matrix(head)
    if matrix is None:
        logits = logits_by(head, how, hidden)
        return scores_of_logits(logits, targets, request.temperature, request.stats)
    weight, bias = matrix
    dtype = product_dtype(weight, how)
    with torch.autocast(hidden.device.type, enabled=False) if how.fp32 else nullcontext():
        logp, entropy, *tables = linear_token_logprobs(
            *(part.to(dtype) for part in (hidden, weight)),
            targets,
            bias=None if bias is None else bias.to(dtype),
            temperature=request.temperature,
            softcap=how.softcap,
            scale=how.scale,
            stats=request.stats,
        )
    return logp, entropy, tables[0] if tables else {}


def states_of(
    model: PreTrainedModel, batch: Batch, aux_loss: bool
) -> tuple[torch.Tensor, router.Gates]:
    """(K, D) last hidden states at the scored places, and the router's logits if wanted."""
    inputs = dict(batch.inputs)
    if router.present(model):
        inputs[router.KEYWORD] = aux_loss
    with noise.by_span(model, batch.lengths):
        output = model.base_model(**inputs)
    gates = output.router_logits if aux_loss else ()
    states = output[0] if isinstance(output, tuple) else output.last_hidden_state
    flat = states.reshape(-1, states.shape[-1])
    return flat.index_select(0, batch.rows.to(states.device)), gates


def _from_hidden(
    model: PreTrainedModel, batch: Batch, request: Request
) -> tuple[Answer, router.Gates]:
    """Backbone, gather, head."""
    hidden, gates = states_of(model, batch, request.aux_loss)
    head = model.get_output_embeddings()
    assert request.head is not None
    return Answer(*_score(head, request.head, hidden, batch.targets, request), hidden), gates


def logits_of(
    model: PreTrainedModel, batch: Batch, aux_loss: bool, want_hidden: bool = False
) -> tuple[torch.Tensor, Any]:
    """(K, V) logits by the model's own forward, told the columns if it can be, and its output."""
    forward = original_forward(model)
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
    if router.present(model):
        inputs[router.KEYWORD] = aux_loss
    if want_hidden:
        inputs["output_hidden_states"] = True
    with noise.by_span(model, batch.lengths):
        output = forward(**inputs)
    logits = output.logits.reshape(-1, output.logits.shape[-1])
    return logits.index_select(0, places.to(logits.device)), output


def _from_logits(
    model: PreTrainedModel, batch: Batch, request: Request
) -> tuple[Answer, router.Gates]:
    """What the model's own forward says."""
    logits, output = logits_of(model, batch, request.aux_loss, request.want_hidden)
    scored = scores_of_logits(logits, batch.targets, request.temperature, request.stats)
    hidden = None
    if request.want_hidden:
        states = output.hidden_states[-1]
        states = states.reshape(-1, states.shape[-1])
        hidden = states.index_select(0, batch.rows.to(states.device))
    aux_loss = output.aux_loss if request.aux_loss else None
    return Answer(*scored, hidden, aux_loss=aux_loss), ()


def original_forward(model: PreTrainedModel) -> Callable[..., Any]:
    """The bound forward the instance had before the door."""
    own = model.__dict__.get(_ORIGINAL)
    return type(model).forward.__get__(model) if own is None else own


def _make_forward(model: PreTrainedModel) -> Callable[..., Any]:
    # Named `forward`: a pickled bound method is found again by its name.
    def forward(self: PreTrainedModel, *args: Any, **keywords: Any) -> Any:
        request = keywords.pop("fastrl_request", None)
        if request is not None:
            return request.answer(self)
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
