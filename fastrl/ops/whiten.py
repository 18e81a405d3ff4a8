"""Masked whitening: zero mean (unless asked otherwise) and unit variance over counted elements."""

from __future__ import annotations

import torch

from fastrl.ops import _native
from fastrl.ops._dispatch import Op
from fastrl.ops._inputs import (
    as_mask,
    can_ask,
    computing_dtype,
    needs_gradient,
    require_floating,
    require_like,
)

EPSILON = 1e-8
NOTHING_COUNTS = (
    "whiten: mask counts no element, so there is no mean; pass at least one non-zero entry"
)


class _Reference:
    @staticmethod
    def forward(x: torch.Tensor, mask: torch.Tensor, shift_mean: bool) -> torch.Tensor:
        if can_ask(mask) and not mask.any():
            raise ValueError(NOTHING_COUNTS)
        count = mask.sum().to(x.dtype)
        mean = torch.where(mask, x, 0.0).sum() / count
        variance = torch.where(mask, x - mean, 0.0).square().sum() / count
        variance = variance * (count / (count - 1))
        whitened = (x - mean) * torch.rsqrt(variance + EPSILON)
        return whitened if shift_mean else whitened + mean


class _Cpp:
    @staticmethod
    def forward(x: torch.Tensor, mask: torch.Tensor, shift_mean: bool) -> torch.Tensor:
        out = torch.empty_like(x)
        count = _native.load("cpu").whiten(
            _native.pointer(x),
            _native.pointer(mask),
            x.numel(),
            shift_mean,
            _native.pointer(out),
            torch.get_num_threads(),
        )
        if count == 0:
            raise ValueError(NOTHING_COUNTS)
        return out


WHITEN = Op(
    "whiten",
    reference=_Reference,
    cpp=_Cpp,
    cuda="fastrl.ops._cuda:Whiten",
    triton="fastrl.kernels.whiten",
)

torch.library.define("fastrl::whiten", "(Tensor x, Tensor mask, bool shift_mean) -> Tensor")


def _run(x: torch.Tensor, mask: torch.Tensor, shift_mean: bool) -> torch.Tensor:
    return WHITEN.pick(x, mask).forward(x, mask, shift_mean)


torch.library.impl("fastrl::whiten", "default", _run)


@torch.library.register_fake("fastrl::whiten")
def _fake(x: torch.Tensor, mask: torch.Tensor, shift_mean: bool) -> torch.Tensor:
    return torch.empty_like(x)


def whiten(x: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """(x - mean) / sqrt(variance + 1e-8), with both moments over the elements that the mask counts.

    The variance is the unbiased one, sum (x - mean)^2 / (n - 1). The result covers every element,
    those outside the mask too, as in TRL 0.7.11. With n = 1 the result is NaN, also as there.

    Args:
        x: floating point, any shape. NaN outside the mask stays where it is.
        mask: the shape of x, not 0 where the element counts.
        shift_mean: False adds the mean back, so that only the scale changes.

    Returns:
        The shape of x, float32 (float64 if x is).

    Raises:
        TypeError: an argument is no tensor, or x is not floating point.
        ValueError: shapes or devices differ; or, on the CPU, the mask counts nothing (on a GPU,
            where to ask would be to wait, the result is NaN).
    """
    require_floating("x", x)
    flags = as_mask(mask)
    require_like("mask", flags, "x", x)
    arguments = (x.to(computing_dtype(x)).contiguous(), flags, bool(shift_mean))
    if needs_gradient(x):
        return WHITEN.differentiable().forward(*arguments)
    if torch.compiler.is_compiling():
        return torch.ops.fastrl.whiten(*arguments)
    return _run(*arguments)
