"""The end of a gated MLP, (silu(gate) * up) Wᵀ + b, which keeps gate and up alone for backward.

What the matrix is multiplied with is made again for the gradients: two tensors of the MLP's width
live until then in place of four (SwiGLU: Shazeer, arXiv 2002.05202). Rows are taken some at a
time, so that what lies between two products stays in the caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import linear, silu

from fastrl.ops._inputs import require_device, require_floating
from fastrl.ops._once import once

_CACHED = 1 << 18  # elements of a piece


def _pieces(gate: torch.Tensor) -> Iterator[slice]:
    """Rows taken at a time; all at once in 16 bits, where sums over pieces would be rounded."""
    rows, width = gate.shape
    whole = gate.device.type != "cpu" or gate.dtype not in (torch.float32, torch.float64)
    some = max(rows, 1) if whole else max(64, _CACHED // max(width, 1))
    return (slice(first, first + some) for first in range(0, rows, some))


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gate: torch.Tensor,
        up: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(gate, up, weight)
        out = gate.new_empty(gate.shape[0], weight.shape[0])
        for piece in _pieces(gate):
            inner = silu(gate[piece]).mul_(up[piece])
            if bias is None:
                torch.mm(inner, weight.t(), out=out[piece])
            else:
                torch.addmm(bias, inner, weight.t(), out=out[piece])
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        (above,) = upstream
        by_weight = torch.zeros_like(weight) if ctx.needs_input_grad[2] else None
        by_gate, by_up = torch.empty_like(gate), torch.empty_like(up)
        with torch.no_grad():
            for piece in _pieces(gate):
                opened = silu(gate[piece])
                if by_weight is not None:
                    by_weight.addmm_(above[piece].t(), opened * up[piece])
                inner = above[piece] @ weight
                torch.mul(opened, inner, out=by_up[piece])
                inner.mul_(up[piece])
                torch.ops.aten.silu_backward.grad_input(
                    inner, gate[piece], grad_input=by_gate[piece]
                )
            by_bias = above.sum(0) if ctx.needs_input_grad[3] else None
        found = (by_gate, by_up, by_weight, by_bias)
        return tuple(once("gated_linear", gradient) for gradient in found)


def gated_linear(
    gate: torch.Tensor,
    up: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """(silu(gate) * up) Wᵀ + b.

    Args:
        gate, up: (..., D).
        weight: (K, D).
        bias: (K,) or None.

    Returns:
        (..., K) in the dtype of all; differentiable once.

    Raises:
        TypeError, ValueError: for tensors whose shapes, dtypes or devices do not fit together.
    """
    require_floating("gate", gate)
    named = (("up", up), ("weight", weight), ("bias", bias))
    for name, tensor in named:
        if tensor is None:
            continue
        if require_floating(name, tensor).dtype != gate.dtype:
            raise TypeError(f"{name} is {tensor.dtype}, gate is {gate.dtype}")
        require_device(name, tensor, "gate", gate)
    if gate.shape != up.shape:
        raise ValueError(f"gate is {tuple(gate.shape)}, up {tuple(up.shape)}; they must be alike")
    if weight.dim() != 2 or gate.dim() == 0 or weight.shape[1] != gate.shape[-1]:
        raise ValueError(f"weight must be (K, {gate.shape[-1:]}), not {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({weight.shape[0]},), not {tuple(bias.shape)}")
    if torch.compiler.is_compiling():
        return linear(silu(gate) * up, weight, bias)
    flat = (tensor.reshape(-1, gate.shape[-1]) for tensor in (gate, up))
    found = _GatedLinear.apply(*flat, weight, bias)
    return found.view(*gate.shape[:-1], weight.shape[0])
