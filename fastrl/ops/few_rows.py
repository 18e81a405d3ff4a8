"""A few rows times a large matrix, as decoding does once a layer: the matrix is read once."""

from __future__ import annotations

import math
from typing import Any

import torch

from fastrl.ops import _native
from fastrl.ops._dispatch import Op
from fastrl.ops._inputs import require_device, require_floating

MOST_ROWS = 64  # with more, a general product is as fast


class _Reference:
    @staticmethod
    def forward(
        rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        return torch.nn.functional.linear(rows, weight, bias)


class _Cpp:
    @staticmethod
    def forward(
        rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Of a weight and a bias that are contiguous."""
        if rows.dtype != torch.float32:
            return _Reference.forward(rows, weight, bias)
        rows = rows.contiguous()
        *outer, depth = rows.shape
        width = weight.shape[0]
        out = rows.new_empty(*outer, width)
        _native.load("cpu").few_rows_linear(
            rows.data_ptr(),
            math.prod(outer),
            depth,
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            width,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out


FEW_ROWS_LINEAR = Op("few_rows_linear", reference=_Reference, cpp=_Cpp)


class FewRowsLinear:
    """A matrix, checked once, that meets rows many times; see `few_rows_linear`.

    Args:
        weight: (V, D), as in `nn.Linear`.
        bias: (V,) or None.

    Raises:
        TypeError, ValueError: if the two do not fit together.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        require_floating("weight", weight)
        if weight.dim() != 2:
            raise ValueError(f"weight must be (V, D), not of shape {tuple(weight.shape)}")
        if bias is not None:
            if bias.shape != weight.shape[:1]:
                shape = tuple(bias.shape)
                raise ValueError(f"bias must be ({len(weight)},), not of shape {shape}")
            if bias.dtype != weight.dtype:
                raise TypeError(f"bias is {bias.dtype}, weight is {weight.dtype}")
            require_device("bias", bias, "weight", weight)
            bias = bias.detach().contiguous()
        self._weight, self._bias = weight.detach().contiguous(), bias
        self._backend: Any = FEW_ROWS_LINEAR.pick(self._weight)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """(..., V) for rows (..., D) of the matrix's dtype and device.

        Raises:
            TypeError, ValueError: for other rows.
        """
        weight = self._weight
        if rows.dtype != weight.dtype:
            raise TypeError(f"rows are {rows.dtype}, weight is {weight.dtype}")
        if rows.dim() == 0 or rows.shape[-1] != weight.shape[1]:
            raise ValueError(
                f"rows (..., D) and weight (V, D) do not fit: their shapes are "
                f"{tuple(rows.shape)} and {tuple(weight.shape)}"
            )
        require_device("rows", rows, "weight", weight)
        with torch.no_grad():
            return self._backend.forward(rows, weight, self._bias)


def few_rows_linear(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """rows · weightᵀ + bias, made for at most `MOST_ROWS` rows; no gradient.

    In fp32 on the CPU a row's result is the same bits whatever rows stand beside it and however
    many threads work.

    Args:
        rows: (..., D).
        weight: (V, D), as in `nn.Linear`.
        bias: (V,) or None.

    Returns:
        (..., V) in the dtype of the rows.

    Raises:
        TypeError, ValueError: for tensors whose shapes, dtypes or devices do not fit together.
    """
    return FewRowsLinear(weight, bias)(rows)
