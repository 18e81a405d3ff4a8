"""Lion, an optimizer that keeps one state a weight and steps by signs (arXiv 2302.06675).

Made like any torch optimizer and handed to a trainer, e.g.

    optimizer = Lion(filter(lambda p: p.requires_grad, model.parameters()), lr=config.learning_rate)
    trainer = PPOTrainer(config, model, model_ref, tokenizer, optimizer=optimizer)

Its steps are larger than Adam's: a learning rate 3 to 10 times smaller does (section 5 there).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """Evolved sign momentum, algorithm 2 of the paper.

        c = β₁ m + (1 - β₁) g
        w ← w - lr (sign(c) + weight_decay · w)
        m ← β₂ m + (1 - β₂) g

    Args:
        params: parameters or groups of them.
        lr: step size.
        betas: β₁ of the step, β₂ of the momentum m.
        weight_decay: decoupled, so multiplied by lr alone.

    Raises:
        ValueError: for a number out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        if not lr >= 0:
            raise ValueError(f"lr={lr}: it must be 0 or more")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas}: each must be from 0 to below 1")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay={weight_decay}: it must be 0 or more")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the loss where a closure computes it again."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, weight: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum = state["momentum"]
        first, second = group["betas"]
        direction = momentum.lerp(gradient, 1 - first).sign_()
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_(direction, alpha=group["lr"])
        momentum.lerp_(gradient, 1 - second)
