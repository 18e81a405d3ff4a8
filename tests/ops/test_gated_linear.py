"""gated_linear: the formula, its gradients, what it keeps, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from fastrl.ops.gated_linear import gated_linear


def formula(gate, up, weight, bias):
    """σ(g) g u Wᵀ + b, in fp64."""
    gate, up, weight = gate.double(), up.double(), weight.double()
    found = (gate * torch.sigmoid(gate) * up) @ weight.T
    return found if bias is None else found + bias.double()


def inputs(rows, width, out, dtype, with_bias):
    """Gate, up, weight and bias or None."""
    generator = torch.Generator().manual_seed(rows + width)
    shapes = [(rows, width), (rows, width), (out, width), (out,)]
    made = [torch.randn(shape, generator=generator) / width**0.25 for shape in shapes]
    given = [one.to(dtype).requires_grad_() for one in made]
    return given if with_bias else [*given[:3], None]


# More rows than one piece holds, and not a multiple of it.
@pytest.mark.parametrize("rows, width, out", [(3, 5, 2), (1, 8, 8), (150, 4096, 3), (1100, 512, 7)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_formula(rows, width, out, with_bias, dtype):
    given = inputs(rows, width, out, dtype, with_bias)
    got, want = gated_linear(*given), formula(*given)
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, **close)
    learned = [one for one in given if one is not None]
    upstream = torch.randn(got.shape, dtype=dtype) / rows**0.5
    mine = torch.autograd.grad(got, learned, upstream)
    theirs = torch.autograd.grad(want, learned, upstream.double())
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, **close)


def test_half_precision_is_one_piece():
    given = inputs(1100, 512, 7, torch.bfloat16, True)
    got = gated_linear(*given)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), formula(*given), rtol=2e-2, atol=5e-2)
    got.sum().backward()
    want = torch.autograd.grad(formula(*given).sum(), given[2])[0].float()
    assert (given[2].grad.float() - want).norm() < 0.01 * want.norm()


def test_by_hand():
    gate, up = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[5.0, 4.0]])
    weight = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    inner = 3.0 * math.log(3.0)  # σ(ln 3) = 3/4
    got = gated_linear(gate, up, weight, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(got, torch.tensor([[2 * inner + 1, -inner]]))


def test_any_shape_in_front_any_stride_and_none():
    gate, up, weight, bias = inputs(6, 4, 3, torch.float32, True)
    whole = gated_linear(gate, up, weight, bias)
    assert torch.equal(
        gated_linear(*(x.view(1, 2, 3, 4) for x in (gate, up)), weight, bias),
        whole.view(1, 2, 3, 3),
    )
    strided = [x.t().contiguous().t() for x in (gate, up)]
    torch.testing.assert_close(gated_linear(*strided, weight, bias), whole)
    torch.testing.assert_close(gated_linear(gate[0], up[0], weight, bias), whole[0])
    empty = gated_linear(gate[:0], up[:0], weight, bias)
    assert empty.shape == (0, 3)
    empty.sum().backward()
    assert weight.grad.abs().max() == 0


def test_two_tensors_of_its_width_are_kept():
    gate, up, weight, _ = inputs(9, 16, 3, torch.float32, False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        gated_linear(gate, up, weight)
    assert kept == [(9, 16), (9, 16), (3, 16)]


def test_a_frozen_matrix_costs_no_gradient():
    gate, up, weight, _ = inputs(9, 16, 3, torch.float32, False)
    gated_linear(gate, up, weight.detach()).sum().backward()
    assert weight.grad is None
    want = torch.autograd.grad(formula(gate, up, weight, None).sum(), gate)[0]
    torch.testing.assert_close(gate.grad, want)


def test_a_second_derivative_is_refused():
    gate, up, weight, _ = inputs(3, 4, 2, torch.float32, False)
    (first,) = torch.autograd.grad(gated_linear(gate, up, weight).sum(), gate, create_graph=True)
    with pytest.raises(RuntimeError, match="gated_linear has no second derivative"):
        first.sum().backward()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"gate": torch.zeros(2, 4, dtype=torch.int64)}, TypeError, "gate"),
        ({"up": torch.zeros(2, 4, dtype=torch.float64)}, TypeError, "up is torch.float64"),
        ({"up": torch.zeros(1, 4)}, ValueError, "up"),
        ({"weight": torch.zeros(3, 5)}, ValueError, "weight"),
        ({"bias": torch.zeros(4)}, ValueError, "bias"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"gate": torch.zeros(2, 4), "up": torch.zeros(2, 4), "weight": torch.zeros(3, 4)}
    with pytest.raises(error, match=message):
        gated_linear(**{**arguments, **change})
