"""A minibatch's way from a loss to an optimizer step, stopped before a NaN reaches the weights."""

from __future__ import annotations

import inspect
import math

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType


class Descent:
    """Backward, clip, check, step, zero; inside `accelerator.accumulate`.

    Args:
        accelerator: decides when gradients are synchronised.
        optimizer: prepared by the accelerator.
        parameters: those that are trained.
        max_grad_norm: clip the global gradient norm to this; None leaves gradients alone.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        optimizer: torch.optim.Optimizer,
        parameters: list[torch.nn.Parameter],
        max_grad_norm: float | None,
    ) -> None:
        self.accelerator = accelerator
        self.optimizer = optimizer
        self.parameters = parameters
        self.max_grad_norm = max_grad_norm
        inner = getattr(optimizer, "optimizer", optimizer)
        self._keeps_zeros = "set_to_none" in inspect.signature(inner.zero_grad).parameters

    def __call__(self, loss: torch.Tensor, watched: torch.Tensor) -> float:
        """Descend along the loss's gradient; `watched` comes back on the host with the check.

        Raises:
            FloatingPointError: on every rank, if the loss or the gradient norm of any rank is not
                finite; no weight has moved and the gradients are zero.
        """
        self.accelerator.backward(loss)
        seen = float("nan")
        if self.accelerator.sync_gradients:
            seen = self._checked(loss.detach(), self._gradient_norm(loss), watched.detach())
        self.optimizer.step()
        self.zero_grad()
        return seen

    def abandon(self) -> None:
        """Forget the minibatches that have accumulated since the last optimizer step.

        Between two steps the prepared optimizer's own `zero_grad` does nothing.
        """
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        self.accelerator.step = 0

    def zero_grad(self) -> None:
        """Fill gradients with zeros; callers of `step()` read `param.grad` afterwards."""
        if self._keeps_zeros:
            self.optimizer.zero_grad(set_to_none=False)
        else:
            self.optimizer.zero_grad()

    def _gradient_norm(self, loss: torch.Tensor) -> torch.Tensor:
        """Global gradient norm before clipping; 0 where an engine or a loss scaler owns that."""
        kind = self.accelerator.distributed_type
        if self.max_grad_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm)
        elif kind == DistributedType.FSDP:
            norm = self.accelerator.clip_grad_norm_(self.parameters, math.inf)
        elif kind == DistributedType.DEEPSPEED:
            norm = None
        else:
            grads = [p.grad for p in self.parameters if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads)
        if norm is None or self.accelerator.scaler is not None:
            return torch.zeros_like(loss)
        return torch.as_tensor(norm, device=loss.device)

    def _checked(self, loss: torch.Tensor, norm: torch.Tensor, watched: torch.Tensor) -> float:
        """Host value of `watched`, if loss and norm are finite on every rank."""
        broken = (~(loss.isfinite() & norm.isfinite())).float()
        if self.accelerator.num_processes > 1:
            broken = self.accelerator.reduce(broken, "sum")
        own_loss, own_norm, seen, failed = torch.stack(
            [loss.float(), norm.float(), watched.float(), broken]
        ).tolist()
        if failed:
            self.zero_grad()
            raise FloatingPointError(
                f"loss {own_loss} and gradient norm {own_norm} on rank "
                f"{self.accelerator.process_index}: not finite on some rank, so this optimizer "
                "step was not taken and the weights are as before it. Look for infinite logits or "
                "values, huge scores, a learning rate too high, or fp16 without a loss scaler"
            )
        return seen
