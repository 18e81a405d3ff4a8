"""Per-token rewards of classic PPO: the KL penalty everywhere, the score at the end of the row."""

from __future__ import annotations

from typing import Literal

import torch

from fastrl.ops import _native
from fastrl.ops._dispatch import Op
from fastrl.ops._inputs import (
    as_mask,
    can_ask,
    computing_dtype,
    needs_gradient,
    require_device,
    require_finite,
    require_floating,
    require_like,
    require_tensor,
)

Kind = Literal["kl", "abs", "mse"]

# By kind: d = logp - ref_logp -> the penalty. A kind's place is its code in csrc/cpu/ops.h.
_PENALTIES = {
    "kl": lambda d: d,
    "abs": lambda d: d.abs(),
    "mse": lambda d: 0.5 * d.square(),
}
KIND_CODE = {kind: code for code, kind in enumerate(_PENALTIES)}


def _empty_row(row: int) -> ValueError:
    return ValueError(
        f"shaped_rewards: row {row} of mask counts no token, so its score has nowhere to go; "
        f"leave the row out or count at least one token"
    )


class _Reference:
    @staticmethod
    def forward(
        scores: torch.Tensor,
        logp: torch.Tensor,
        ref_logp: torch.Tensor,
        mask: torch.Tensor,
        kl_coef: float,
        kind: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        some = mask.any(dim=1)
        if can_ask(mask) and not some.all():
            raise _empty_row(int((~some).nonzero()[0]))
        kl = _PENALTIES[kind](logp - ref_logp)
        column = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, column, -1).amax(dim=1, keepdim=True)  # (B, 1)
        score = torch.where(column == last, scores[:, None], 0.0)
        rewards = -kl_coef * kl + score
        return torch.where(some[:, None], rewards, float("nan")), kl


class _Cpp:
    @staticmethod
    def forward(
        scores: torch.Tensor,
        logp: torch.Tensor,
        ref_logp: torch.Tensor,
        mask: torch.Tensor,
        kl_coef: float,
        kind: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rewards = torch.empty_like(logp)
        kl = torch.empty_like(logp)
        empty_row = _native.load("cpu").shaped_rewards(
            *map(_native.pointer, (scores, logp, ref_logp, mask)),
            *logp.shape,
            kl_coef,
            KIND_CODE[kind],
            *map(_native.pointer, (rewards, kl)),
            torch.get_num_threads(),
        )
        if empty_row >= 0:
            raise _empty_row(empty_row)
        return rewards, kl


SHAPED_REWARDS = Op(
    "shaped_rewards",
    reference=_Reference,
    cpp=_Cpp,
    cuda="fastrl.ops._cuda:ShapedRewards",
    triton="fastrl.kernels.shaped_rewards",
)

torch.library.define(
    "fastrl::shaped_rewards",
    "(Tensor scores, Tensor logp, Tensor ref_logp, Tensor mask, float kl_coef, str kind)"
    " -> (Tensor, Tensor)",
)


def _run(
    scores: torch.Tensor,
    logp: torch.Tensor,
    ref_logp: torch.Tensor,
    mask: torch.Tensor,
    kl_coef: float,
    kind: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    backend = SHAPED_REWARDS.pick(logp, ref_logp, scores, mask)
    return backend.forward(scores, logp, ref_logp, mask, kl_coef, kind)


torch.library.impl("fastrl::shaped_rewards", "default", _run)


@torch.library.register_fake("fastrl::shaped_rewards")
def _fake(
    scores: torch.Tensor,
    logp: torch.Tensor,
    ref_logp: torch.Tensor,
    mask: torch.Tensor,
    kl_coef: float,
    kind: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(logp), torch.empty_like(logp)


def shaped_rewards(
    scores: torch.Tensor,
    logp: torch.Tensor,
    ref_logp: torch.Tensor,
    mask: torch.Tensor,
    kl_coef: float,
    kind: Kind = "kl",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards of classic PPO: -kl_coef * kl everywhere, plus the score at the last counted token.

    With d = logp - ref_logp the penalty is d (`kl`, the k1 estimate), |d| (`abs`) or d^2 / 2
    (`mse`, the k2 estimate). As in TRL 0.7.11 neither output is masked (arXiv:1909.08593, eq. 2).

    Args:
        scores: (B,) one score a row.
        logp, ref_logp: (B, T) log-probabilities of the taken tokens under policy and reference.
        mask: (B, T), not 0 where the token counts; at least one in each row.
        kl_coef: weight of the penalty.
        kind: `kl`, `abs` or `mse`.

    Returns:
        rewards and kl, each (B, T) float32 (float64 if an input is).

    Raises:
        TypeError: an argument is of the wrong kind, or a log-probability not floating point.
        ValueError: unknown kind; kl_coef is NaN or infinite; shapes or devices differ; or, on the
            CPU, a row without a counted token (on a GPU, where to ask would be to wait, its rewards
            are NaN).
    """
    if not isinstance(kind, str) or kind not in KIND_CODE:
        raise ValueError(f"kind must be one of {', '.join(KIND_CODE)}, not {kind!r}")
    if require_tensor("scores", scores).is_complex():
        raise TypeError("scores must be real numbers, not complex")
    require_floating("logp", logp)
    require_floating("ref_logp", ref_logp)
    flags = as_mask(mask)
    if logp.dim() != 2:
        raise ValueError(f"logp must be (B, T), not of shape {tuple(logp.shape)}")
    require_like("ref_logp", ref_logp, "logp", logp)
    require_like("mask", flags, "logp", logp)
    if scores.shape != logp.shape[:1]:
        raise ValueError(
            f"scores must be ({logp.shape[0]},), one a row, not of shape {tuple(scores.shape)}"
        )
    require_device("scores", scores, "logp", logp)
    dtype = computing_dtype(scores, logp, ref_logp)
    recorded = needs_gradient(scores, logp, ref_logp)
    scores, logp, ref_logp = (t.to(dtype).contiguous() for t in (scores, logp, ref_logp))
    arguments = (scores, logp, ref_logp, flags, require_finite("kl_coef", kl_coef), kind)
    if recorded:
        return SHAPED_REWARDS.differentiable().forward(*arguments)
    if torch.compiler.is_compiling():
        return torch.ops.fastrl.shaped_rewards(*arguments)
    return _run(*arguments)
