"""few_rows_linear: the product in float64, and a row that does not depend on its company."""

from __future__ import annotations

import math

import pytest
import torch

from fastrl.ops.few_rows import few_rows_linear

SHAPES = [(16, 8), (7, 33), (1, 1), (4, 5), (5, 64), (130, 300), (9, 1024), (6, 1025), (3, 2111)]


def made(rows, width, depth, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows + width + depth)
    sizes = ((rows, depth), (width, depth), (width,))
    return [torch.randn(*size, generator=generator).to(dtype) for size in sizes]


def product(rows, weight, bias):
    sums = (rows.double()[:, None] * weight.double()[None]).sum(-1)
    return sums if bias is None else sums + bias.double()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("width, depth", SHAPES)
def test_is_the_product(backend, width, depth, biased):
    for n in (1, 2, 3, 5, 8, 65):
        rows, weight, bias = made(n, width, depth)
        got = few_rows_linear(rows, weight, bias if biased else None)
        want = product(rows, weight, bias if biased else None)
        assert got.dtype == torch.float32 and got.shape == (n, width)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-6 * math.sqrt(depth))


@pytest.mark.parametrize("width, depth", SHAPES)
def test_a_row_has_the_same_bits_in_any_company(instruction_set, cpp, width, depth):
    rows, weight, bias = made(71, width, depth)
    together = few_rows_linear(rows, weight, bias)
    want = product(rows, weight, bias)
    torch.testing.assert_close(together.double(), want, rtol=1e-5, atol=2e-6 * math.sqrt(depth))
    first = 0
    for count in (1, 2, 3, 4, 5, 6, 7, 9, 11, 23):
        part = few_rows_linear(rows[first : first + count], weight, bias)
        assert torch.equal(part, together[first : first + count])
        first += count
    assert first == len(rows)
    torch.set_num_threads(1)
    assert torch.equal(few_rows_linear(rows, weight, bias), together)


def test_large_enough_for_both_threads_and_a_strided_input(instruction_set, cpp):
    rows, weight, bias = made(12, 4099, 260)
    strided = torch.empty(260, 12).copy_(rows.T).T
    got = few_rows_linear(strided, weight, bias)
    assert not strided.is_contiguous()
    torch.testing.assert_close(got.double(), product(rows, weight, bias), rtol=1e-5, atol=1e-4)


def test_a_nan_stays_in_its_row_and_nothing_is_fine(backend):
    rows, weight, bias = made(5, 9, 40)
    rows[2, 7] = math.nan
    got = few_rows_linear(rows, weight, bias)
    assert got[2].isnan().all() and got[[0, 1, 3, 4]].isfinite().all()
    assert few_rows_linear(rows[:0], weight, bias).shape == (0, 9)
    assert torch.equal(few_rows_linear(rows[:, :0], weight[:, :0], bias), bias.expand(5, 9))


def test_rows_may_lie_in_any_shape(backend):
    rows, weight, bias = made(6, 9, 40)
    flat = few_rows_linear(rows, weight, bias)
    assert torch.equal(few_rows_linear(rows.view(2, 3, 40), weight, bias), flat.view(2, 3, 9))
    assert few_rows_linear(rows[0], weight, bias).shape == (9,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_torchs(dtype):
    rows, weight, bias = made(3, 10, 24, dtype)
    got = few_rows_linear(rows, weight, bias)
    assert torch.equal(got, torch.nn.functional.linear(rows, weight, bias))


def test_what_is_refused():
    rows, weight, bias = made(3, 10, 24)
    with pytest.raises(ValueError, match=r"do not fit: their shapes are \(3, 24\) and \(10, 23\)"):
        few_rows_linear(rows, weight[:, :23])
    with pytest.raises(ValueError, match=r"bias must be \(10,\), not of shape \(9,\)"):
        few_rows_linear(rows, weight, bias[:9])
    with pytest.raises(TypeError, match=r"rows are torch\.float32, weight is torch\.float64"):
        few_rows_linear(rows, weight.double())
    with pytest.raises(TypeError, match=r"bias is torch\.float64, weight is torch\.float32"):
        few_rows_linear(rows, weight, bias.double())
    with pytest.raises(TypeError, match="weight must be floating point"):
        few_rows_linear(rows, weight.long())
    with pytest.raises(ValueError, match=r"weight must be \(V, D\), not of shape \(24,\)"):
        few_rows_linear(rows, weight[0])
