"""Repetition penalty: make tokens that were seen already less likely (arXiv:1909.05858)."""

from __future__ import annotations

import math

import torch

from fastrl.ops import _native
from fastrl.ops._dispatch import Op
from fastrl.ops._inputs import (
    can_ask,
    needs_gradient,
    require_device,
    require_floating,
    require_positive,
    require_tensor,
)


def _bad_row(row: int, vocabulary: int) -> ValueError:
    return ValueError(
        f"seen: row {row} holds an id outside [-1, {vocabulary}); pad with -1 and check that the "
        f"ids belong to this model's vocabulary"
    )


class _Reference:
    @staticmethod
    def forward(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
        rows, vocabulary = logits.shape
        bad = ((seen < -1) | (seen >= vocabulary)).any(dim=1, keepdim=True)
        if can_ask(logits) and bool(bad.any()):
            raise _bad_row(int(bad.flatten().nonzero()[0]), vocabulary)
        spare = torch.where((seen < 0) | (seen >= vocabulary), vocabulary, seen)
        mark = torch.zeros(rows, vocabulary + 1, dtype=torch.bool, device=logits.device)
        mark = mark.scatter(1, spare, True)[:, :vocabulary]
        x = logits.float()
        lowered = torch.where(x < 0, x * penalty, x / penalty)
        return torch.where(bad, math.nan, torch.where(mark, lowered, x))


class _Cpp:
    @staticmethod
    def forward(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
        out = torch.empty(logits.shape, dtype=torch.float32)
        bad_row = _native.load("cpu").penalise(
            _native.pointer(logits),
            _native.DTYPE_CODE[logits.dtype],
            *logits.shape,
            _native.pointer(seen),
            seen.shape[1],
            penalty,
            _native.pointer(out),
            torch.get_num_threads(),
        )
        if bad_row >= 0:
            raise _bad_row(bad_row, logits.shape[1])
        return out


PENALISE = Op("penalise", reference=_Reference, cpp=_Cpp, cuda="fastrl.ops._cuda:Penalise")

torch.library.define("fastrl::penalise", "(Tensor logits, Tensor seen, float penalty) -> Tensor")


def _run(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    return PENALISE.pick(logits, seen).forward(logits, seen, penalty)


torch.library.impl("fastrl::penalise", "default", _run)


@torch.library.register_fake("fastrl::penalise")
def _fake(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    return torch.empty_like(logits, dtype=torch.float32)


def penalise(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Divide the positive logits of seen tokens by the penalty, multiply the negative by it.

    Args:
        logits: (B, V) floats.
        seen: (B, L) int64 ids, prompt and answer so far, -1 as padding; repeats count once.
        penalty: > 0; 1 changes nothing, more discourages repeats.

    Returns:
        (B, V) fp32, a new tensor. Differentiable through the reference backend.

    Raises:
        TypeError, ValueError: for arguments of the wrong kind, shape or range. On the CPU also for
            ids outside [-1, V); on a GPU the row of such an id becomes NaN.
    """
    require_floating("logits", logits)
    if logits.dim() != 2:
        raise ValueError(f"logits must be (B, V), not of shape {tuple(logits.shape)}")
    if require_tensor("seen", seen).dtype != torch.int64:
        raise TypeError(f"seen must be int64, not {seen.dtype}; call seen.long()")
    if seen.dim() != 2 or len(seen) != len(logits):
        raise ValueError(f"seen must be ({len(logits)}, L), not of shape {tuple(seen.shape)}")
    require_device("seen", seen, "logits", logits)
    penalty = require_positive("penalty", penalty)
    if needs_gradient(logits):
        return PENALISE.differentiable().forward(logits, seen, penalty)
    if logits.dtype not in _native.DTYPE_CODE:
        logits = logits.float()
    arguments = (logits.contiguous(), seen.contiguous(), penalty)
    if torch.compiler.is_compiling():
        return torch.ops.fastrl.penalise(*arguments)
    return _run(*arguments)
