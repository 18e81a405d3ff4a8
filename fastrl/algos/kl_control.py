"""The KL penalty per token and what steers its coefficient (Ziegler et al. 2019, section 2.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fastrl.algos.ppo_config import PPOConfig


def kl_per_token(kind: str, logp: torch.Tensor, ref_logp: torch.Tensor) -> torch.Tensor:
    """Penalty for leaving the reference.

    "kl": log p − log p_ref, whose mean over samples is the KL; "abs": its absolute value; "mse":
    half its square; "full": Σ p·(log p − log p_ref) over the last dimension, the vocabulary.
    """
    difference = logp - ref_logp
    if kind == "full":
        return (logp.exp() * difference).sum(-1)
    return {"kl": lambda d: d, "abs": torch.abs, "mse": lambda d: 0.5 * d.square()}[kind](
        difference
    )


class AdaptiveKLController:
    """Moves the coefficient in proportion to how far the KL is from its target.

    `update(current, n_steps)`: error = clip(current / target − 1, ±0.2) and
    value ← value · (1 + error · n_steps / horizon); `current` in nats per row, n_steps in rows.
    """

    def __init__(self, init_kl_coef: float, target: float, horizon: float) -> None:
        self.value = init_kl_coef
        self.target = target
        self.horizon = horizon

    def update(self, current: float, n_steps: int) -> None:
        error = min(max(current / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * n_steps / self.horizon


class FixedKLController:
    """Keeps the coefficient as given."""

    def __init__(self, kl_coef: float) -> None:
        self.value = kl_coef

    def update(self, current: float, n_steps: int) -> None:
        """Leaves the coefficient alone."""


def kl_controller(config: PPOConfig) -> AdaptiveKLController | FixedKLController:
    """The controller the config asks for."""
    if not config.adap_kl_ctrl:
        return FixedKLController(config.init_kl_coef)
    return AdaptiveKLController(config.init_kl_coef, config.target, config.horizon)
