"""Gradients that were computed by formula and have none of their own."""

from __future__ import annotations

from typing import Any

import torch


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: torch.Tensor, op: str) -> torch.Tensor:
        ctx.op = op
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[None, None]:
        raise RuntimeError(
            f"{ctx.op} has no second derivative; compute it with "
            "torch.log_softmax, whose gradient can be differentiated again"
        )


def once(op: str, gradient: torch.Tensor | None) -> torch.Tensor | None:
    """The gradient as is, or under `create_graph=True` one that refuses to be differentiated.

    Args:
        op: the operation's name, for the message.
        gradient: what its backward computed without recording.
    """
    if gradient is None or not torch.is_grad_enabled():
        return gradient
    return _Once.apply(gradient.detach().requires_grad_(), op)
