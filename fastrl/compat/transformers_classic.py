"""What transformers and its hub client had and gave up without a successor of the same meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay, as transformers had it: eps is added before the second
    moment's bias is corrected, and weights decay after the step (arXiv:1711.05101).

    Args:
        params: parameters, or groups of them.
        lr, betas, eps, weight_decay: of the step; weights do not decay by default.
        correct_bias: whether the moments' bias towards 0 is corrected.
        no_deprecation_warning: accepted, without effect.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        no_deprecation_warning: bool = False,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps)):
            if value < 0:
                raise ValueError(f"AdamW: {name} must not be negative, got {value}")
        for beta in betas:
            if not 0 <= beta < 1:
                raise ValueError(f"AdamW: betas must lie in [0, 1), got {betas}")
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, settings | {"correct_bias": correct_bias})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the closure, if any, computes the loss that is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._descend(parameter, group)
        return loss

    def _descend(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(parameter))
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        first, second = group["betas"]
        state["exp_avg"].lerp_(parameter.grad, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
        size = group["lr"]
        if group["correct_bias"]:
            size *= (1 - second ** state["step"]) ** 0.5 / (1 - first ** state["step"])
        spread = state["exp_avg_sq"].sqrt().add_(group["eps"])
        parameter.addcdiv_(state["exp_avg"], spread, value=-size)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])


def top_k_top_p_filtering(
    logits: torch.Tensor,
    top_k: int = 0,
    top_p: float = 1.0,
    filter_value: float = -float("inf"),
    min_tokens_to_keep: int = 1,
) -> torch.Tensor:
    """Logits (B, V) with all but the likeliest tokens at `filter_value`.

    Args:
        logits: (B, V).
        top_k: keep so many (0: all).
        top_p: keep the likeliest that together have this probability.
        filter_value: what the others become.
        min_tokens_to_keep: keep so many in any case.
    """
    given = {"filter_value": filter_value, "min_tokens_to_keep": min_tokens_to_keep}
    unused: Any = None  # tokens so far, which neither looks at
    if top_k > 0:
        logits = TopKLogitsWarper(top_k, **given)(unused, logits)
    if 0 <= top_p < 1:
        logits = TopPLogitsWarper(top_p, **given)(unused, logits)
    return logits


class HfFolder:
    """The hub's token on this machine, as `huggingface_hub.HfFolder` kept it."""

    @staticmethod
    def get_token() -> str | None:
        """The token, of the environment or of this machine; None if there is none."""
        return huggingface_hub.get_token()

    @staticmethod
    def save_token(token: str) -> None:
        """Keep a token on this machine, unchecked."""
        path = Path(huggingface_hub.constants.HF_TOKEN_PATH)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(token)

    @staticmethod
    def delete_token() -> None:
        """Forget the token."""
        huggingface_hub.logout()
