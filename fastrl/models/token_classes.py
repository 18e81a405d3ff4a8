"""Logits of single tokens under a token-classification model, without padding.

transformers' classes put their head on every position; here only those asked for are scored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from fastrl.models import door, handshake, noise, spans
from fastrl.models.handshake import Plan
from fastrl.models.layout import Batch
from fastrl.models.pooled import announced, in_order, laid_out, states_at
from fastrl.models.spans import Places
from fastrl.types import Tokens

_HEADS = ("score", "classifier")


@dataclass(frozen=True)
class Request:
    """Classify the places of these batches. The answer is (K, L) fp32, batches end to end."""

    batches: tuple[Batch, ...]
    own_forward: bool

    # A compiler cannot follow a request's lists and caches; it compiles what the model computes.
    @torch.compiler.disable(recursive=False)
    def answer(self, model: PreTrainedModel) -> torch.Tensor:
        """Run the model; called by its forward."""
        classify = _own if self.own_forward else _from_hidden
        logits = torch.cat([classify(model, batch) for batch in self.batches])
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _from_hidden(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Backbone, gather, the dropout before the head, head."""
    hidden = states_at(model, batch)
    modules: dict[str, Any] = dict(model.named_children())
    if "dropout" in modules:
        hidden = modules["dropout"](hidden)
    return next(modules[name] for name in _HEADS if name in modules)(hidden)


def _own(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    inputs = {name: given for name, given in batch.inputs.items() if name != "use_cache"}
    with noise.by_span(model, batch.lengths):
        logits = door.original_forward(model)(**inputs).logits
    return logits.reshape(-1, logits.shape[-1]).index_select(0, batch.rows.to(logits.device))


def _places(tokens: Tokens) -> Places:
    """The scored tokens themselves, where a language model's are those before them."""
    before = spans.places(tokens)
    return replace(before, place=before.place + 1)


class TokenClassifier:
    """How the handshake asks a model for the classes of tokens."""

    fed = handshake.trial.LENGTHS[0]

    def head(self, model: PreTrainedModel) -> door.Head:
        """Nothing but its matrix."""
        return door.Head()

    def places(self, tokens: Tokens) -> Places:
        """The scored tokens."""
        return _places(tokens)

    def ask(
        self, model: PreTrainedModel, batches: tuple[Batch, ...], head: door.Head | None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The logits."""
        logits = model(fastrl_request=Request(batches, head is None))
        own = logits[: handshake.trial.LENGTHS[0] - handshake.trial.COMMON]
        return {"logits": logits}, own.sum()


def prepare_token_classes(model: nn.Module) -> Plan:
    """Make a model ready for `token_logits`, as `policy.prepare_policy` does for log-probabilities.

    Args:
        model: a token-classification model, bare or wrapped.

    Returns:
        how it will be read; a warning states the reason if rows are not packed.

    Raises:
        TypeError: if no transformers model is inside.
        ValueError: for another kind of model, or a soft prompt.
    """
    instance, _ = door.find(model)
    plan = handshake.standing(instance)
    if plan is not None:
        return plan
    check_token_classes(model)
    return announced(instance, handshake.prepare(instance, TokenClassifier()))


def check_token_classes(model: nn.Module) -> None:
    """Refuse a model that does not classify tokens.

    Raises:
        TypeError, ValueError: as `prepare_token_classes`.
    """
    instance, soft_prompt = door.find(model)
    name = type(instance).__name__
    if not name.endswith("ForTokenClassification"):
        raise ValueError(
            f"model: steps are judged by a token-classification model, got {name}; load it by "
            "AutoModelForTokenClassification.from_pretrained(..., num_labels=2)"
        )
    if soft_prompt:
        raise ValueError(
            f"model: a soft prompt moves the tokens of {name} from their places; use an adapter "
            "without virtual tokens, e.g. LoRA"
        )


def token_logits(model: nn.Module, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of the scored tokens.

    Args:
        model: what the trainer calls; the call goes through it, so its wrappers stay armed.
        tokens: (B, T) ids, their spans and which tokens are scored.

    Returns:
        (K, L) fp32, differentiable where gradients are enabled, span by span; and (K,) int64, where
        these tokens stand in the flattened ids.

    Raises:
        ValueError, TypeError: for spans that do not fit, and as `prepare_token_classes`.
    """
    spans.check(tokens)
    chosen = _places(tokens)
    plan = prepare_token_classes(model)
    instance, _ = door.find(model)
    places = laid_out(instance, tokens, chosen, plan)
    found = model(fastrl_request=Request(places.batches, plan.head is None))
    at = chosen.row * tokens.ids.shape[1] + chosen.start
    at = torch.from_numpy(np.repeat(at, chosen.count) + chosen.place)
    return in_order(found, places), at.to(tokens.ids.device, non_blocking=True)
