"""How far a student's next-token distribution is from a teacher's, from hidden states and heads.

Engines, and their products of N x D x V:
    keep       4  d D / d z of all rows stays until the backward
    recompute  6  nothing of size V x N stays; the backward makes both rows of logits again
    frozen     3  the student's head needs no gradient: d D / d hidden is made in the forward
    forward    2  no gradients
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fastrl.ops._dispatch import Op
from fastrl.ops._divergence_tiles import compare, reference_divergence
from fastrl.ops._inputs import (
    can_ask,
    require_device,
    require_floating,
    require_like,
    require_number,
    require_positive,
)
from fastrl.ops._linear_engines import Backward, Gradients, Head, Tiling, Wanted, place, whole_rows
from fastrl.ops._linear_tiles import WholeRows
from fastrl.ops._once import once
from fastrl.ops.linear_token_logprobs import (
    checked_head,
    choose_engine,
    reference_logits,
    uncast,
)


@dataclass(frozen=True)
class Side:
    """Student or teacher."""

    hidden: torch.Tensor  # (N, D)
    head: Head


class _Reference:
    @staticmethod
    def forward(student: Side, teacher: Side, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            teacher_z = reference_logits(teacher.hidden, teacher.head)
        return reference_divergence(reference_logits(student.hidden, student.head), teacher_z, beta)


class _Chunks:
    """Chunks of rows: the logits of both heads, their divergence and its slope."""


# Every backend walks the chunks below; what it compares them by is torch's on all devices.
TOKEN_DIVERGENCE = Op(
    "token_divergence", reference=_Reference, cpp=_Chunks, cuda=_Chunks, triton=_Chunks
)


def walk(
    student: Side, teacher: Side, beta: float, slopes: bool, keep: torch.Tensor | None = None
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Chunk after chunk of rows: (rows, D, entropy, d D / d (h W^T + b) or None).

    Args:
        slopes: whether slopes are wanted; they are overwritten at the next step, unless kept.
        keep: (N, V), where all of them go.
    """
    cut, vocab = _cut(student, teacher), student.head.vocab
    columns = slice(0, vocab)
    sides = (student, teacher)
    buffers = [side.hidden.new_empty(cut.rows * vocab) for side in sides]
    # Through a cap the backward needs both the logits and their slope.
    capped = slopes and keep is None and student.head.softcap is not None
    fresh = torch.empty_like(buffers[0]) if capped else buffers[0]
    temperatures = (student.head.tile_temperature, teacher.head.tile_temperature)
    for rows in cut.row_slices(len(student.hidden)):
        theirs, tile = (
            side.head.project(side.hidden[rows], columns, place(buffer, rows, columns))
            for side, buffer in zip(reversed(sides), reversed(buffers), strict=True)
        )
        out = None
        if slopes:
            out = place(fresh, rows, columns) if keep is None else keep[rows]
        value, entropy = compare(tile, theirs, temperatures, beta, out)
        if out is not None:
            out = student.head.through_cap(out, tile)
        yield rows, value, entropy, out


def _cut(student: Side, teacher: Side) -> Tiling:
    """Chunks that fit the buffer of the wider of the two."""
    widest = max(student.hidden, teacher.hidden, key=lambda hidden: hidden.element_size())
    return whole_rows(widest, student.head.vocab)


def _forward(
    student: Side, teacher: Side, beta: float, engine: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """D (N,), entropy (N,), and what the engine keeps for the backward."""
    hidden, head = student.hidden, student.head
    slopes = engine in ("keep", "frozen")
    keep = hidden.new_empty(len(hidden), head.vocab) if engine == "keep" else None
    units = torch.empty_like(hidden) if engine == "frozen" else hidden.new_empty(0)
    values, entropies = [], []
    for rows, value, entropy, slope in walk(student, teacher, beta, slopes, keep):
        values.append(value)
        entropies.append(entropy)
        if engine == "frozen":
            assert slope is not None
            torch.mm(slope, head.weight, out=units[rows])
    return torch.cat(values), torch.cat(entropies), units if keep is None else keep


def _scaled(rows: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Each row times its gradient; a gradient of 0 makes 0 of everything."""
    scaled, nothing = rows * grad[:, None], grad == 0
    if can_ask(grad) and not nothing.any():
        return scaled
    return scaled.masked_fill_(nothing[:, None], 0.0)


def _backward(
    student: Side,
    teacher: Side,
    beta: float,
    engine: str,
    kept: torch.Tensor,
    grad: torch.Tensor,
    wanted: Wanted,
) -> Gradients:
    """Gradients of the student's hidden states, weight and bias, None where not wanted."""
    hidden, head = student.hidden, student.head
    if engine == "frozen":
        return _scaled(kept, grad).to(hidden.dtype), None, None
    backward = Backward(head, hidden, wanted, _cut(student, teacher), WholeRows)
    columns = slice(0, head.vocab)
    if engine == "keep":
        rows = _cut(student, teacher).row_slices(len(hidden))
        pieces = ((part, kept[part]) for part in rows)
    else:
        steps = walk(student, teacher, beta, slopes=True)
        pieces = ((part, slope) for part, _, _, slope in steps)
    for rows, slope in pieces:
        backward.take(rows, columns, _scaled(slope, grad[rows]).to(hidden.dtype))
    return backward.result()


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        *tensors, numbers, teacher_numbers, beta, engine = inputs
        hidden, weight, bias, *others = tensors
        ctx.settings = (numbers, teacher_numbers, beta, engine)
        student, teacher = _sides(tensors, numbers, teacher_numbers)
        with uncast(hidden.device):
            value, entropy, kept = _forward(student, teacher, beta, engine)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, *others, kept)
        ctx.mark_non_differentiable(entropy)
        return value, entropy

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None, _: Any) -> tuple[torch.Tensor | None, ...]:
        nothing = (None,) * len(ctx.needs_input_grad)
        if grad is None:
            return nothing
        *tensors, kept = ctx.saved_tensors
        numbers, teacher_numbers, beta, engine = ctx.settings
        with torch.no_grad(), uncast(grad.device):
            found = _backward(
                *_sides(tensors, numbers, teacher_numbers),
                beta,
                engine,
                kept,
                grad,
                Wanted(*ctx.needs_input_grad[:3]),
            )
        return (*(once("token_divergence", gradient) for gradient in found), *nothing[3:])


Numbers = tuple[float, float | None, float]  # temperature, softcap, scale


def _sides(
    tensors: list[torch.Tensor | None], numbers: Numbers, teacher_numbers: Numbers
) -> tuple[Side, Side]:
    hidden, weight, bias, teacher_hidden, teacher_weight, teacher_bias = tensors
    return (
        Side(hidden, Head(weight, bias, *numbers)),
        Side(teacher_hidden, Head(teacher_weight, teacher_bias, *teacher_numbers)),
    )


def require_beta(beta: object) -> float:
    """The value as a float.

    Raises:
        TypeError: if it is no number.
        ValueError: if it lies outside [0, 1].
    """
    number = require_number("beta", beta)
    if not 0.0 <= number <= 1.0:
        raise ValueError(
            f"beta must lie in [0, 1], not {number:g}: 0 is the forward KL, 1 the reverse"
        )
    return number


def _require_same(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor,
) -> None:
    if len(teacher_hidden) != len(hidden):
        raise ValueError(
            f"teacher_hidden has {len(teacher_hidden)} rows and hidden {len(hidden)}; give the "
            "same places of both"
        )
    if len(teacher_weight) != len(weight):
        raise ValueError(
            f"teacher_weight has {len(teacher_weight)} tokens and weight {len(weight)}; the two "
            "must be over one vocabulary: cut both to the tokens that they share"
        )
    require_device("teacher_hidden", teacher_hidden, "hidden", hidden)


def token_divergence(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor,
    beta: float = 0.5,
    temperature: float = 1.0,
    *,
    bias: torch.Tensor | None = None,
    teacher_bias: torch.Tensor | None = None,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
    scale: float = 1.0,
    teacher_scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Divergence of a student's next-token distributions from a teacher's, row by row.

    The divergence is the generalised Jensen-Shannon one (formulas in _divergence_tiles.py):
    forward KL (teacher || student) at beta = 0, reverse KL (student || teacher) at 1, in between
    both against the mixture. Logits become distributions as in `linear_token_logprobs`, by each
    side's own bias, cap and scale; they pass through one buffer a side, chunk of rows by chunk of
    rows, the teacher's first and without gradient. Products are made in the dtype of each side's
    inputs, all else in float32. Give only rows that count: each costs two rows of logits.

    A token that neither side can draw (logit -inf) adds nothing. One that only the second argument
    of a KL cannot draw makes it infinite; in between the ends a divergence is always finite.

    Args:
        hidden: (N, D) floating point, the student's.
        weight: (V, D), dtype of hidden.
        teacher_hidden: (N, D') floating point.
        teacher_weight: (V, D'), dtype of teacher_hidden.
        beta: in [0, 1].
        temperature: positive; both sides' logits are divided by it.
        bias, teacher_bias: (V,), dtypes of their sides, or None.
        softcap, teacher_softcap, scale, teacher_scale: positive numbers, or no cap.

    Returns:
        divergence (N,), differentiable once with respect to hidden, weight and bias, and the
        student's entropy (N,) without gradient, both in nats, float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is of the wrong kind, or the tensors of one side differ in dtype.
        ValueError: shapes, vocabularies or devices do not fit, or a number is out of range.
    """
    head = checked_head(hidden, weight, bias, temperature, softcap, scale)
    numbers = (temperature, teacher_softcap, teacher_scale)
    theirs = checked_head(teacher_hidden, teacher_weight, teacher_bias, *numbers, "teacher_")
    _require_same(hidden, weight, teacher_hidden, teacher_weight)
    beta = require_beta(beta)
    tensors = [hidden, weight, bias, teacher_hidden, teacher_weight, teacher_bias]
    if TOKEN_DIVERGENCE.pick(hidden, weight, teacher_hidden, teacher_weight) is _Reference:
        with uncast(hidden.device):
            return _Reference.forward(Side(hidden, head), Side(teacher_hidden, theirs), beta)
    numbers = (head.temperature, head.softcap, head.scale)
    teacher_numbers = (theirs.temperature, theirs.softcap, theirs.scale)
    engine = choose_engine(hidden, weight, bias)
    tensors[3:] = [None if t is None else t.detach() for t in tensors[3:]]
    return _Divergence.apply(*tensors, numbers, teacher_numbers, beta, engine)


class _OfLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, teacher: torch.Tensor, temperature: float, beta: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        slope = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        value, entropy = compare(logits, teacher, (temperature, temperature), beta, slope)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(entropy)
        return value, entropy

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None, _: Any) -> tuple[torch.Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        (slope,) = ctx.saved_tensors
        with torch.no_grad():
            gradient = _scaled(slope, grad).to(slope.dtype)
        return once("token_divergence", gradient), None, None, None


def logits_divergence(
    logits: torch.Tensor, teacher_logits: torch.Tensor, beta: float = 0.5, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `token_divergence`, of logits that a head has made already.

    Args:
        logits, teacher_logits: (N, V) floating point, of student and teacher.
        beta: in [0, 1].
        temperature: positive; both are divided by it.

    Returns:
        divergence (N,), differentiable once with respect to logits, and the student's entropy (N,)
        without gradient, float32 (float64 for float64 logits).

    Raises:
        TypeError, ValueError: as `token_divergence`.
    """
    require_floating("logits", logits)
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be (N, V) with V > 0, not {tuple(logits.shape)}")
    require_like(
        "teacher_logits", require_floating("teacher_logits", teacher_logits), "logits", logits
    )
    beta, temperature = require_beta(beta), require_positive("temperature", temperature)
    teacher_logits = teacher_logits.detach()
    if TOKEN_DIVERGENCE.pick(logits, teacher_logits) is _Reference:
        wide = torch.promote_types(logits.dtype, torch.float32)
        z, teacher_z = (part.to(wide) / temperature for part in (logits, teacher_logits))
        return reference_divergence(z, teacher_z, beta)
    return _OfLogits.apply(logits, teacher_logits, temperature, beta)
