"""Checks that every operation makes of its arguments, before anything is computed."""

from __future__ import annotations

import math
import operator
from typing import SupportsFloat, SupportsIndex

import torch

from fastrl.ops._dispatch import is_plain


def require_tensor(name: str, value: object) -> torch.Tensor:
    """The value itself.

    Raises:
        TypeError: if it is no tensor.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}")
    return value


def require_floating(name: str, value: object) -> torch.Tensor:
    """The value itself.

    Raises:
        TypeError: if it is no tensor, or one of integers, booleans or complex numbers.
    """
    tensor = require_tensor(name, value)
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point, not {tensor.dtype}; call {name}.float()")
    return tensor


def require_number(name: str, value: object) -> float:
    """The value as a float.

    Raises:
        TypeError: if it is no number (text that reads like one is none either).
    """
    if isinstance(value, str) or not isinstance(value, SupportsFloat):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    return float(value)


def require_finite(name: str, value: object) -> float:
    """The value as a float.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is NaN or infinite.
    """
    number = require_number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, not {number}")
    return number


def require_positive(name: str, value: object) -> float:
    """The value as a float.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is not positive and finite.
    """
    number = require_number(name, value)
    if not 0.0 < number < math.inf:
        raise ValueError(f"{name} must be positive and finite, not {number:g}")
    return number


def require_whole(name: str, value: object, least: int) -> int:
    """The value as an int.

    Raises:
        TypeError: if it is no whole number.
        ValueError: if it is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return number


def require_like(name: str, value: torch.Tensor, model_name: str, model: torch.Tensor) -> None:
    """Check that two tensors agree in shape and device.

    Raises:
        ValueError: naming both arguments.
    """
    if value.shape != model.shape:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, {model_name} has {tuple(model.shape)}; "
            f"they must be equal"
        )
    require_device(name, value, model_name, model)


def require_device(name: str, value: torch.Tensor, model_name: str, model: torch.Tensor) -> None:
    """Check that two tensors are on one device.

    Raises:
        ValueError: naming both arguments.
    """
    if value.device != model.device:
        raise ValueError(
            f"{name} is on {value.device}, {model_name} on {model.device}; move one of them"
        )


def as_mask(mask: object) -> torch.Tensor:
    """The mask as a contiguous bool tensor: what is not 0 counts.

    Raises:
        TypeError: if it is no tensor.
    """
    return require_tensor("mask", mask).bool().contiguous()


def computing_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """float64 if any input has it (the reference then serves), else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def can_ask(tensor: torch.Tensor) -> bool:
    """Whether a branch may depend on the values: plain memory of the CPU, and nobody is tracing."""
    return tensor.device.type == "cpu" and is_plain(tensor) and not torch.compiler.is_compiling()


def needs_gradient(*tensors: torch.Tensor) -> bool:
    """Whether autograd would record an operation on these tensors."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
