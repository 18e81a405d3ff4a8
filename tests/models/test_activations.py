"""Gated MLPs end in one operation, which gives what the module's own forward gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from fastrl.models import activations

WIDE = {"rtol": 1e-9, "atol": 1e-12}


def mlps(model: Any) -> list[Any]:
    """The model's MLPs."""
    return [layer.mlp for layer in model.model.layers]


def calls(monkeypatch: Any) -> list[tuple[int, ...]]:
    """Shapes of the gates the operation is given from now on."""
    seen: list[tuple[int, ...]] = []
    plain = activations.gated_linear

    def counted(gate: torch.Tensor, *others: Any) -> torch.Tensor:
        seen.append(tuple(gate.shape))
        return plain(gate, *others)

    monkeypatch.setattr(activations, "gated_linear", counted)
    return seen


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_equals_the_modules_own_forward(family: str, tiny: Any, monkeypatch: Any) -> None:
    model = tiny(family)
    plain = copy.deepcopy(model)
    activations.fuse(model)
    seen = calls(monkeypatch)
    x = torch.randn(1, 7, 32, dtype=torch.float64)
    for mine, theirs in zip(mlps(model), mlps(plain), strict=True):
        got, want = mine(x), theirs(x)
        torch.testing.assert_close(got, want, **WIDE)
        got.square().sum().backward()
        want.square().sum().backward()
        for (name, one), other in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, **WIDE, msg=name)
    assert seen == [(1, 7, 64)] * 2


def test_a_last_matrix_that_is_more_than_one_is_called(tiny: Any, monkeypatch: Any) -> None:
    model = tiny("llama")
    activations.fuse(model)
    seen = calls(monkeypatch)
    mlp = mlps(model)[0]
    x = torch.randn(1, 7, 32, dtype=torch.float64)
    want = mlp(x)
    heard: list[int] = []
    mlp.down_proj.register_forward_hook(lambda m, i, o: heard.append(o.shape[1]))
    torch.testing.assert_close(mlp(x), want, **WIDE)
    assert (len(seen), heard) == (1, [7])
    with torch.autocast("cpu", torch.bfloat16):
        assert mlps(model)[1].float()(x.float()).dtype == torch.bfloat16
    assert len(seen) == 1


def test_what_only_looks_like_one_is_left_alone(tiny: Any) -> None:
    class Other(nn.Module):
        def __init__(self, mlp: nn.Module) -> None:
            super().__init__()
            for name, part in mlp.named_children():
                setattr(self, name, part)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))

    model = tiny("llama")
    model.model.layers[0].mlp = Other(model.model.layers[0].mlp)
    activations.fuse(model)
    assert ["forward" in mlp.__dict__ for mlp in mlps(model)] == [False, True]
    gelu = tiny("gemma3")
    activations.fuse(gelu)
    assert not any("forward" in mlp.__dict__ for mlp in mlps(gelu))


def test_a_copy_is_of_itself(tiny: Any) -> None:
    model = tiny("llama")
    activations.fuse(model)
    other = copy.deepcopy(model)
    x = torch.randn(1, 3, 32, dtype=torch.float64)
    with torch.no_grad():
        mlps(other)[0].down_proj.weight.zero_()
        assert mlps(other)[0](x).abs().max() == 0
        assert mlps(model)[0](x).abs().max() > 0
