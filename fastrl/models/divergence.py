"""How far a student's next-token distributions are from a teacher's, without padding.

The teacher is asked first, through its own door, for its last hidden states at the scored places.
They travel into the student's forward, where both heads meet chunk by chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from fastrl.models import door, spans, trial
from fastrl.models.layout import Batch, Layout
from fastrl.models.policy import Frames, laid, prepare_policy
from fastrl.ops.token_divergence import logits_divergence, require_beta, token_divergence
from fastrl.types import Tokens


@dataclass(frozen=True)
class Divergences:
    """By token, in the frames of `LogProbs`: column t is of token t + 1."""

    divergence: torch.Tensor  # (B, T - 1) fp32, of the student from the teacher, in nats
    entropy: torch.Tensor  # (B, T - 1) fp32, the student's, without gradient
    mask: torch.Tensor  # (B, T - 1) bool

    def last(self, columns: int) -> Divergences:
        """Those of the last tokens only."""
        start = self.mask.shape[1] - columns
        parts = (self.divergence, self.entropy, self.mask)
        return Divergences(*(part[:, start:] for part in parts))


class _Said(NamedTuple):
    """What a model says of the next token at K places."""

    states: torch.Tensor  # (K, D) last hidden states, or (K, V) logits
    matrix: tuple[torch.Tensor, torch.Tensor | None] | None  # the head's; None: they are logits
    how: door.Head

    def cast(self) -> dict[str, torch.Tensor | None]:
        """Arguments of `token_divergence`, in the dtype of this side's product."""
        assert self.matrix is not None
        weight, bias = self.matrix
        dtype = door.product_dtype(weight, self.how)
        return {
            "hidden": self.states.to(dtype),
            "weight": weight.to(dtype),
            "bias": None if bias is None else bias.to(dtype),
        }

    def logits(self) -> torch.Tensor:
        """(K, V) in fp32 or wider."""
        if self.matrix is None:
            return self.states.to(torch.promote_types(self.states.dtype, torch.float32))
        how, cast = self.how, self.cast()
        product = torch.nn.functional.linear(cast["hidden"], cast["weight"], cast["bias"])
        return door.logits_by(nn.Identity(), how, product)


def _say(model: PreTrainedModel, batch: Batch, head: door.Head | None) -> _Said:
    """Run the model on a batch; called by its forward."""
    if head is None:
        return _Said(door.logits_of(model, batch, aux_loss=False)[0], None, door.Head())
    states, _ = door.states_of(model, batch, aux_loss=False)
    matrix = door.head_matrix(model.get_output_embeddings())
    if matrix is None:
        return _Said(door.logits_by(model.get_output_embeddings(), head, states), None, head)
    return _Said(states, matrix, head)


@dataclass(frozen=True)
class _Ask:
    """Ask the teacher. The answer is (K, D) or (K, V), batches end to end."""

    batches: tuple[Batch, ...]
    head: door.Head | None
    whole: bool  # logits are wanted, as the head cannot be read from outside

    @torch.compiler.disable(recursive=False)
    def answer(self, model: PreTrainedModel) -> torch.Tensor:
        """Run the model; called by its forward."""
        said = [_say(model, batch, self.head) for batch in self.batches]
        return torch.cat([one.logits() if self.whole else one.states for one in said])


@dataclass(frozen=True)
class _Compare:
    """Ask the student, and compare."""

    batches: tuple[Batch, ...]
    head: door.Head | None
    teacher: _Said  # at the places of all batches, end to end
    beta: float
    temperature: float

    @torch.compiler.disable(recursive=False)
    def answer(self, model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
        """Divergence (K,) and entropy (K,); called by the model's forward."""
        counts = [len(batch.rows) for batch in self.batches]
        pieces = zip(self.batches, self.teacher.states.split(counts), strict=True)
        found = [
            self._compared(_say(model, batch, self.head), self.teacher._replace(states=states))
            for batch, states in pieces
        ]
        divergence, entropy = zip(*found, strict=True)
        return torch.cat(divergence), torch.cat(entropy)

    def _compared(self, mine: _Said, theirs: _Said) -> tuple[torch.Tensor, torch.Tensor]:
        how: dict[str, Any] = {"beta": self.beta, "temperature": self.temperature}
        if mine.matrix is None or theirs.matrix is None:
            return logits_divergence(mine.logits(), theirs.logits(), **how)
        for side, prefix in ((mine, ""), (theirs, "teacher_")):
            numbers = {"softcap": side.how.softcap, "scale": side.how.scale}
            how.update({f"{prefix}{n}": x for n, x in {**side.cast(), **numbers}.items()})
        return token_divergence(**how)


def divergences(
    student: nn.Module,
    teacher: nn.Module,
    tokens: Tokens,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Divergences:
    """Compare two models at the tokens of each span that `tokens.scored` names.

    Args:
        student: what the trainer calls; the call goes through it, so its wrappers stay armed.
        teacher: another model over the same vocabulary, as it is called; no gradient reaches it.
        tokens: (B, T) ids and their spans.
        beta: as of `fastrl.ops.token_divergence`.
        temperature: both models' logits are divided by it.

    Returns:
        (B, T - 1) frames; the divergence is differentiable where gradients are enabled.

    Raises:
        ValueError, TypeError: for spans that do not fit, models with a soft prompt, vocabularies of
            different size, and as `prepare_policy`.
    """
    spans.check(tokens)
    beta = require_beta(beta)
    plan, instance = _planned("student", student)
    places = laid(plan, instance, tokens)
    with torch.no_grad():
        said = _taught(teacher, tokens, places)
    request = _Compare(places.batches, plan.head, said, beta, temperature)
    divergence, entropy = student(fastrl_request=request)
    at = Frames(tokens, places.frame)
    return Divergences(at.spread(divergence), at.spread(entropy), at.mask)


def _planned(name: str, model: nn.Module) -> tuple[Any, PreTrainedModel]:
    plan, (instance, soft_prompt) = prepare_policy(model), door.find(model)
    if soft_prompt:
        raise ValueError(
            f"{name}: a soft prompt (prompt tuning, prefix tuning, p-tuning) lengthens its logits, "
            "which cannot be compared then; use LoRA"
        )
    return plan, instance


def _taught(teacher: nn.Module, tokens: Tokens, wanted: Layout) -> _Said:
    """What the teacher says at the places of the student's layout, in their order."""
    plan, instance = _planned("teacher", teacher)
    places = laid(plan, instance, tokens)
    head = None if plan.head is None else replace(plan.head, fp32=False)
    matrix = None
    if head is not None and not trial.partitioned(instance):
        matrix = door.head_matrix(instance.get_output_embeddings())
    states = teacher(fastrl_request=_Ask(places.batches, head, matrix is None))
    if matrix is None:
        head = door.Head()
    assert head is not None
    # Models that are fed differently say it in another order.
    order = torch.empty(tokens.ids.numel(), dtype=torch.int64, device=places.frame.device)
    order[places.frame] = torch.arange(len(places.frame), device=order.device)
    return _Said(states.index_select(0, order[wanted.frame].to(states.device)), matrix, head)
