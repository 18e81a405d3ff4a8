"""Generalised advantage estimation (arXiv:1506.02438)."""

from __future__ import annotations

import torch

from fastrl.ops import _native
from fastrl.ops._dispatch import Op
from fastrl.ops._inputs import (
    as_mask,
    computing_dtype,
    needs_gradient,
    require_finite,
    require_floating,
    require_like,
)


class _Reference:
    @staticmethod
    def forward(
        rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rewards = torch.where(mask, rewards, 0.0)
        values = torch.where(mask, values, 0.0)
        following = rewards.new_zeros(rewards.shape[0])  # (B,) V_{t+1}
        advantage = following  # (B,) A_{t+1}
        columns = []
        for t in reversed(range(rewards.shape[1])):
            delta = rewards[:, t] + gamma * following - values[:, t]
            advantage = delta + gamma * lam * advantage
            following = values[:, t]
            columns.append(advantage)
        advantages = torch.stack(columns[::-1], dim=1) if columns else torch.zeros_like(rewards)
        return advantages, advantages + values


class _Cpp:
    @staticmethod
    def forward(
        rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        advantages = torch.empty_like(rewards)
        returns = torch.empty_like(rewards)
        _native.load("cpu").gae(
            *map(_native.pointer, (rewards, values, mask)),
            *rewards.shape,
            gamma,
            lam,
            *map(_native.pointer, (advantages, returns)),
            torch.get_num_threads(),
        )
        return advantages, returns


GAE = Op(
    "gae",
    reference=_Reference,
    cpp=_Cpp,
    cuda="fastrl.ops._cuda:Gae",
    triton="fastrl.kernels.gae",
)

torch.library.define(
    "fastrl::gae",
    "(Tensor rewards, Tensor values, Tensor mask, float gamma, float lam) -> (Tensor, Tensor)",
)


def _run(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return GAE.pick(rewards, values, mask).forward(rewards, values, mask, gamma, lam)


torch.library.impl("fastrl::gae", "default", _run)


@torch.library.register_fake("fastrl::gae")
def _fake(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(rewards), torch.empty_like(rewards)


def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    gamma: float,
    lam: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns of a batch of rows, as classic PPO computes them.

    With r and V set to 0 outside the mask and V = 0 after the last column,
    delta_t = r_t + gamma V_{t+1} - V_t,  A_t = delta_t + gamma lam A_{t+1},  R_t = A_t + V_t
    (arXiv:1506.02438, eq. 11 and 16). The recursion passes through masked columns. Advantages are
    not whitened; masked columns hold what the recursion gives there.

    Args:
        rewards: (B, T) floating point.
        values: (B, T) floating point, the value of the state before each token.
        mask: (B, T), not 0 where the column counts. What lies outside may be NaN.
        gamma: discount.
        lam: the trace parameter, lambda.

    Returns:
        advantages and returns, each (B, T) float32 (float64 if an input is).

    Raises:
        TypeError: an argument is of the wrong kind, or rewards or values are not floating point.
        ValueError: the tensors are not 2-D, or differ in shape or device; gamma or lam is NaN or
            infinite.
    """
    require_floating("rewards", rewards)
    require_floating("values", values)
    flags = as_mask(mask)
    if rewards.dim() != 2:
        raise ValueError(f"rewards must be (B, T), not of shape {tuple(rewards.shape)}")
    require_like("values", values, "rewards", rewards)
    require_like("mask", flags, "rewards", rewards)
    dtype = computing_dtype(rewards, values)
    arguments = (
        rewards.to(dtype).contiguous(),
        values.to(dtype).contiguous(),
        flags,
        require_finite("gamma", gamma),
        require_finite("lam", lam),
    )
    if needs_gradient(rewards, values):
        return GAE.differentiable().forward(*arguments)
    if torch.compiler.is_compiling():
        return torch.ops.fastrl.gae(*arguments)
    return _run(*arguments)
