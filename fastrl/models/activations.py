"""Activations of MLPs as one operation each, from gate to output where a gate is used.

`gelu_new` is 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), which transformers composes of
elementwise operations, several of which keep an (N, 4D) tensor for backward. torch computes the
same formula in one pass and keeps the input alone.

A gated MLP, down(silu(gate(x)) * up(x)), keeps four tensors of its width; `gated_linear` keeps two.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import gelu
from transformers.activations import NewGELUActivation, SiLUActivation

from fastrl.models import door
from fastrl.ops._dispatch import is_plain
from fastrl.ops.gated_linear import gated_linear

_PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")
_TOLERANCE = 1e-3


def _forward(input: torch.Tensor) -> torch.Tensor:
    return gelu(input, approximate="tanh")


def _fits(gate: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the operation serves: on the CPU, where it was measured, and in one dtype."""
    if torch.compiler.is_compiling():
        return False
    if gate.device.type != "cpu" or gate.dtype != weight.dtype or not is_plain(gate):
        return False
    return not torch.is_autocast_enabled("cpu")


# Named `forward`: a pickled bound method is found again by its name.
def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A gated MLP's forward; its last matrix joins the gate while it is nothing but a matrix."""
    gate_proj, up_proj, down_proj, act_fn = (self.get_submodule(name) for name in _PARTS)
    gate, up = gate_proj(x), up_proj(x)
    matrix = door.head_matrix(down_proj)
    if matrix is None or not _fits(gate, matrix[0]):
        return down_proj(act_fn(gate) * up)
    return gated_linear(gate, up, *matrix)


def _gated(module: nn.Module) -> bool:
    """Whether the module is a gated MLP, as its own forward answers for a row tried on it."""
    parts = [module._modules.get(name) for name in _PARTS]
    if "forward" in module.__dict__ or len(module._modules) != len(_PARTS):
        return False
    if type(parts[3]) not in (SiLUActivation, nn.SiLU) or type(parts[0]) is not nn.Linear:
        return False
    weight = parts[0].weight
    row = torch.linspace(-1, 1, weight.shape[1], dtype=weight.dtype, device=weight.device)[None]
    with torch.no_grad():
        want, got = module(row), forward(module, row)
    return torch.allclose(got, want, rtol=_TOLERANCE, atol=_TOLERANCE * want.abs().max().item())


def fuse(model: nn.Module) -> None:
    """Let the model's `gelu_new` activations and gated MLPs run as one operation, from now on.

    Not per pass: gradient checkpointing repeats the forward during backward and must find the same.
    """
    for module in model.modules():
        if type(module) is NewGELUActivation and "forward" not in module.__dict__:
            module.__dict__["forward"] = _forward
        elif all(name in module._modules for name in _PARTS) and _gated(module):
            module.forward = forward.__get__(module)
