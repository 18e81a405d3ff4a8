"""Rewards of sequences under a sequence-classification model with one label, without padding.

transformers' classes run the backbone, put the head `score` on every position and keep that of the
last token which is not padding; here only that one is scored.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from fastrl.models import door, handshake, layout, noise, spans
from fastrl.models.handshake import Plan
from fastrl.models.layout import Batch, Layout
from fastrl.models.policy import pass_limit, trims
from fastrl.models.spans import Places
from fastrl.types import Tokens


@dataclass(frozen=True)
class Request:
    """Reward the places of these batches. The answer is (K,) fp32, batches end to end."""

    batches: tuple[Batch, ...]
    own_forward: bool  # the model's own, which pools by itself

    # A compiler cannot follow a request's lists and caches; it compiles what the model computes.
    @torch.compiler.disable(recursive=False)
    def answer(self, model: PreTrainedModel) -> torch.Tensor:
        """Run the model; called by its forward."""
        reward = _own if self.own_forward else _from_hidden
        rewards = torch.cat([reward(model, batch) for batch in self.batches])
        return rewards.to(torch.promote_types(rewards.dtype, torch.float32))


def states_at(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """(K, D) the backbone's last hidden states at the places of a batch."""
    with noise.by_span(model, batch.lengths):
        output = model.base_model(**batch.inputs)
    states = output[0] if isinstance(output, tuple) else output.last_hidden_state
    return states.reshape(-1, states.shape[-1]).index_select(0, batch.rows.to(states.device))


def _from_hidden(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Backbone, gather, head."""
    head: Any = model.score
    return head(states_at(model, batch))[:, 0]


def _own(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    inputs = {name: given for name, given in batch.inputs.items() if name != "use_cache"}
    with noise.by_span(model, batch.lengths):
        return door.original_forward(model)(**inputs).logits[:, 0]


class RewardModel:
    """How the handshake asks a model for the rewards of rows, pooled at their last token."""

    fed = handshake.trial.LENGTHS[0]

    def head(self, model: PreTrainedModel) -> door.Head:
        """Nothing but `score`."""
        return door.Head()

    def places(self, tokens: Tokens) -> Places:
        """The last token of each row."""
        return spans.pooled_places(tokens, [length - 1 for length in tokens.lengths])

    def ask(
        self, model: PreTrainedModel, batches: tuple[Batch, ...], head: door.Head | None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The rewards."""
        rewards = model(fastrl_request=Request(batches, head is None))
        return {"rewards": rewards}, rewards[0]


def prepare_rewards(model: nn.Module) -> Plan:
    """Make a model ready for `rewards`, as `policy.prepare_policy` does for log-probabilities.

    Args:
        model: a sequence-classification model with one label, bare or wrapped.

    Returns:
        how it will be read; a warning states the reason if rows are not packed.

    Raises:
        TypeError: if no transformers model is inside.
        ValueError: for an encoder-decoder, a model with another number of labels, or a soft prompt.
    """
    instance, soft_prompt = door.find(model)
    plan = handshake.standing(instance)
    if plan is not None:
        return plan
    name = type(instance).__name__
    if getattr(instance.config, "is_encoder_decoder", False):
        raise ValueError(f"model: {name} is an encoder-decoder, which is not served")
    if not name.endswith("ForSequenceClassification") or instance.config.num_labels != 1:
        raise ValueError(
            f"model: a reward model is a sequence-classification model with num_labels=1, got "
            f"{name} with num_labels={instance.config.num_labels}; load it by "
            "AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)"
        )
    if soft_prompt:
        raise ValueError(
            f"model: with a soft prompt {name} is given embeddings and pools at the last column, "
            "padding or not; use an adapter without virtual tokens, e.g. LoRA"
        )
    return announced(instance, handshake.prepare(instance, RewardModel()))


def announced(model: PreTrainedModel, plan: Plan) -> Plan:
    """The plan; a warning says why rows are not packed, if they are not."""
    name = type(model).__name__
    if plan.head is None:
        warnings.warn(f"{name} is read through its own forward: {plan.head_reason}", stacklevel=3)
    elif not plan.packed:
        warnings.warn(f"{name} is read with padding: {plan.reason}", stacklevel=3)
    return plan


def rewards(model: nn.Module, tokens: Tokens, pooled: Sequence[int]) -> torch.Tensor:
    """The reward of each span.

    Args:
        model: what the trainer calls; the call goes through it, so its wrappers stay armed.
        tokens: (B, T) ids and their spans; `tokens.scored` is not asked for and may be empty.
        pooled: S: the token each span is judged at, counted within the span: for transformers'
            classes the last that is not the padding token. A model that is read through its own
            forward (`prepare_rewards` says so) pools in its own way.

    Returns:
        (S,) fp32, differentiable where gradients are enabled.

    Raises:
        ValueError, TypeError: for spans or places that do not fit, and as `prepare_rewards`.
    """
    spans.check(tokens)
    chosen = spans.pooled_places(tokens, pooled)
    plan = prepare_rewards(model)
    instance, _ = door.find(model)
    if plan.head is None:
        places = _own_layout(instance, tokens, plan)
    else:
        places = laid_out(instance, tokens, chosen, plan)
    return in_order(model(fastrl_request=Request(places.batches, plan.head is None)), places)


def laid_out(model: PreTrainedModel, tokens: Tokens, chosen: Places, plan: Plan) -> Layout:
    """Packed if the plan allows it, else padded."""
    if not plan.packed:
        return layout.padded(tokens, plan.takes_positions, plan.counts_pads, spans=chosen)
    limit = pass_limit(model, tokens.ids.device)
    share = plan.shares_prefix and not noise.active(model)
    return layout.packed(tokens, limit, share, trim=trims(plan, model), spans=chosen)


def in_order(found: torch.Tensor, places: Layout) -> torch.Tensor:
    """What was found at each place, first those of the first span and so on."""
    order = np.argsort(places.spans, kind="stable")
    if (order == np.arange(len(order))).all():
        return found
    return found.index_select(0, torch.from_numpy(order).to(found.device))


def _own_layout(model: PreTrainedModel, tokens: Tokens, plan: Plan) -> Layout:
    """Padded rows in which the class finds the padding; each by itself if it knows of none."""
    pad = model.config.get_text_config().pad_token_id
    ends = spans.pooled_places(tokens, [length - 1 for length in tokens.lengths])
    if pad is not None:
        given = layout.padded(tokens, plan.takes_positions, plan.counts_pads, spans=ends)
        return replace(given, batches=tuple(_with_padding(batch, pad) for batch in given.batches))
    batches: list[Batch] = []
    for span, length in enumerate(tokens.lengths):
        row = span if tokens.rows is None else tokens.rows[span]
        start = tokens.starts[span]
        offset = None if tokens.position_offsets is None else [tokens.position_offsets[span]]
        ids = tokens.ids[row : row + 1, start : start + length]
        one = Tokens(ids, [0], [length], [length], offset)
        given = layout.padded(
            one, plan.takes_positions, plan.counts_pads, spans.pooled_places(one, [length - 1])
        )
        batches += given.batches
    frame = torch.empty(0, dtype=torch.int64)
    return Layout(tuple(batches), frame, np.arange(len(tokens.lengths)))


def _with_padding(batch: Batch, pad: int) -> Batch:
    ids = batch.inputs["input_ids"].masked_fill(batch.inputs["attention_mask"] == 0, pad)
    return replace(batch, inputs={**batch.inputs, "input_ids": ids})
