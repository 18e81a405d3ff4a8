"""What a model can be trusted with, found out by trying it on the model itself.

Three short rows are scored alone by the model's own forward, and again through the door: head
path, packed layout, one gradient. Only what agrees is used; parameters, gradients, mode and
random state are left alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from transformers import PreTrainedModel

from fastrl.models import activations, attention, door, last_layer, layout, trial, twin
from fastrl.models.layout import Batch, Layout
from fastrl.models.spans import Places, places
from fastrl.types import Shared, Tokens

_PLAN = "_fastrl_plan"


@dataclass(frozen=True)
class Plan:
    """How a model is scored."""

    packed: bool
    head: door.Head | None  # None: through the model's own logits
    reason: str | None  # why not packed
    takes_positions: bool  # accepts position_ids
    counts_pads: bool  # left to itself, counts padding before a row as positions
    proven_on: tuple[str, torch.dtype]  # device type and dtype the rows were tried on
    head_reason: str | None = None  # why the head is not used by itself
    shares_prefix: bool = False  # what spans begin with alike is fed once
    prefix_reason: str | None = None  # why not, though packed
    trims: bool = False  # the last layer leaves out what no score depends on
    trim_reason: str | None = None  # why not, though packed


class Subject(Protocol):
    """How a kind of model is asked for the scores of rows."""

    fed: int  # tokens of the trial's row 0 that its scores depend on

    def head(self, model: PreTrainedModel) -> door.Head:
        """What is expected between the hidden states and the scores."""

    def places(self, tokens: Tokens) -> Places:
        """What is scored of the rows."""

    def ask(
        self,
        model: PreTrainedModel,
        batches: tuple[Batch, ...],
        head: door.Head | None,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Scores by name, first dimension by place; and a sum of those of row 0.

        Without `head` they come from the model's own forward.
        """


class LanguageModel:
    """Log-probabilities of tokens."""

    fed = trial.LENGTHS[0] - 1  # nothing scored depends on the last token

    def head(self, model: PreTrainedModel) -> door.Head:
        """What the config says."""
        return door.Head.of_config(model.config)

    def places(self, tokens: Tokens) -> Places:
        """Before each scored token."""
        return places(tokens)

    def ask(
        self, model: PreTrainedModel, batches: tuple[Batch, ...], head: door.Head | None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Log-probabilities, entropies and the hidden states both come from."""
        answer = model(fastrl_request=door.Request(batches, 1.0, head, want_hidden=True))
        assert answer.hidden is not None
        scores = {"log-probabilities": answer.logp, "entropies": answer.entropy}
        of_row_0 = answer.logp[: trial.LENGTHS[0] - trial.COMMON].sum()
        return {**scores, "hidden states": answer.hidden}, of_row_0


Scores = dict[str, torch.Tensor]


@dataclass(frozen=True)
class _Trial:
    """A model, the rows it is tried on and how."""

    model: PreTrainedModel
    subject: Subject
    tokens: Tokens
    tolerance: float

    def scores(self, given: Layout, head: door.Head | None, gradient: bool = False) -> Scores:
        """Scores of all places; on request "gradients" (tokens fed, D) of row 0's."""
        if not gradient:
            with torch.no_grad():
                return self.subject.ask(self.model, given.batches, head)[0]
        with trial.embedded(self.model) as leaves, torch.enable_grad():
            found, total = self.subject.ask(self.model, given.batches, head)
            (by,) = torch.autograd.grad(total, leaves[-1:])
        found = {name: score.detach() for name, score in found.items()}
        return {**found, "gradients": by.reshape(-1, by.shape[-1])}

    def padded(self, tokens: Tokens) -> Layout:
        """The rows padded, the model left to make positions."""
        return layout.padded(tokens, False, spans=self.subject.places(tokens))

    def alone(self) -> Scores:
        """Each row by itself through the model's own forward, joined."""
        rows = [trial.row_of(self.tokens, row) for row in range(len(trial.LENGTHS))]
        found = [self.scores(self.padded(row), None, row is rows[0]) for row in rows]
        joined = {name: torch.cat([scores[name] for scores in found]) for name in found[1]}
        return {**joined, "gradients": found[0]["gradients"][: self.subject.fed]}

    def agree(self, got: Scores, want: Scores) -> None:
        """Raise unless equal; row 0's gradient must be 0 beyond row 0, the first that is fed."""
        if "gradients" in got:
            by = got["gradients"]
            if by[self.subject.fed :].abs().max() != 0:
                raise trial.Disagreement("a gradient crosses from one packed row into another")
            got = {**got, "gradients": by[: self.subject.fed]}
        for name, given in got.items():
            trial.close(name, given, want[name], self.tolerance)

    def padded_agree(self, head: door.Head | None, alone: Scores) -> None:
        """Raise unless padded rows give what they give alone."""
        self.agree(self.scores(self.padded(self.tokens), head), alone)

    def packed_agree(self, head: door.Head | None, alone: Scores) -> None:
        """Raise unless packed rows give what they give alone."""
        trial.require_structure(self.model)
        attention.enable(self.model.config)
        given = layout.packed(self.tokens, spans=self.subject.places(self.tokens))
        batch, windows = trial.watched(given.batches[0])
        got = self.scores(replace(given, batches=(batch,)), head, gradient=True)
        trial.require_windows(self.model, windows)
        self.agree(got, alone)

    def shared_agree(self, head: door.Head | None, alone: Scores) -> None:
        """Raise unless rows whose common tokens are fed once give what they give alone."""
        group = Shared(tuple(range(len(trial.LENGTHS))), trial.COMMON)
        tokens = replace(self.tokens, shared=(group,))
        given = layout.packed(tokens, share=True, spans=self.subject.places(tokens))
        self.agree(self.scores(given, head, gradient=True), alone)

    def trimmed_agree(self, head: door.Head | None, alone: Scores) -> None:
        """Raise unless rows whose last layer computes what is scored give what they give alone."""
        last_layer.install(self.model)
        given = layout.packed(self.tokens, trim=True, spans=self.subject.places(self.tokens))
        self.agree(self.scores(given, head, gradient=True), alone)

    def counts_pads(self, alone: Scores) -> bool:
        """Whether two pads before row 0 change its scores when no positions are given."""
        row = trial.row_of(self.tokens, 0)
        ids = torch.cat([row.ids[:, :2], row.ids], dim=1)
        shifted = replace(row, ids=ids, starts=[2], position_offsets=[2])
        try:
            for name, got in self.scores(self.padded(shifted), None).items():
                # Rotary tables are fp32 in any model, so shifted positions agree to that at best.
                trial.close(name, got, alone[name][: len(got)], max(self.tolerance, 1e-4))
        except trial.Disagreement:
            return True
        return False


def _failure(step: Callable[[], None]) -> str | None:
    """Why a step fails, with whatever a foreign model's parts fail with; None if it does not."""
    try:
        step()
    except Exception as error:
        return trial.told(error)
    return None


def examine(model: PreTrainedModel, subject: Subject) -> Plan:
    """Try the model (with its door installed) and say how it is to be scored.

    Returns:
        the plan; `reason` says why it is not packed.
    """
    takes_positions = "position_ids" in inspect.signature(type(model).forward).parameters
    proven_on = trial.key(model)
    tolerance = trial.TOLERANCE.get(proven_on[1], 5e-2)
    tried = _Trial(model, subject, trial.rows(model), tolerance)
    head: door.Head | None = subject.head(model)
    with trial.undisturbed(model):
        try:
            alone = tried.alone()
            counts_pads = tried.counts_pads(alone)
        except Exception as error:  # e.g. a dtype its kernels lack on this device
            why = f"its own forward fails here ({trial.told(error)})"
            return Plan(False, None, why, takes_positions, True, proven_on)
        activations.fuse(model)
        head_reason = _failure(lambda: tried.padded_agree(head, alone))
        if head_reason is not None:
            head = None
        reason = _failure(lambda: tried.packed_agree(head, alone))
        if reason is not None:
            attention.disable(model.config)
        prefix_reason = trim_reason = None
        if reason is None:
            prefix_reason = _failure(lambda: tried.shared_agree(head, alone))
            trim_reason = _failure(lambda: tried.trimmed_agree(head, alone))
    return Plan(
        packed=reason is None,
        head=head,
        reason=reason,
        takes_positions=takes_positions,
        counts_pads=counts_pads,
        proven_on=proven_on,
        head_reason=head_reason,
        shares_prefix=reason is None and prefix_reason is None,
        prefix_reason=prefix_reason,
        trims=reason is None and trim_reason is None,
        trim_reason=trim_reason,
    )


def _examine_twin(model: PreTrainedModel, subject: Subject) -> Plan:
    """The plan of a small model of the same class, and the model made ready for it."""
    try:
        tried = twin.of(model)
    except Exception as error:  # a class that no smaller config fits
        why = f"it cannot run by itself, and neither can a smaller one ({trial.told(error)})"
        takes_positions = "position_ids" in inspect.signature(type(model).forward).parameters
        return Plan(False, None, why, takes_positions, True, trial.key(model))
    door.install(tried)
    plan = replace(examine(tried, subject), proven_on=trial.key(model))
    if plan.packed:
        attention.enable(model.config)
    if plan.trims:
        trim_reason = _failure(lambda: last_layer.install(model))
        plan = replace(plan, trims=trim_reason is None, trim_reason=trim_reason)
    return plan


def standing(model: PreTrainedModel) -> Plan | None:
    """The plan of an earlier `prepare`, if it still holds."""
    plan = model.__dict__.get(_PLAN)
    if plan is None or not door.installed(model):
        return None
    stale = plan.packed and not attention.enabled(model.config)
    moved = plan.proven_on != trial.key(model) and not trial.partitioned(model)
    return None if stale or moved else plan


def prepare(model: PreTrainedModel, subject: Subject) -> Plan:
    """Install the door, examine the model and remember the plan."""
    door.install(model)
    plan = _examine_twin(model, subject) if twin.needed(model) else examine(model, subject)
    model.__dict__[_PLAN] = plan
    return plan
