"""whiten: by hand, against float64, and at the edges."""

from __future__ import annotations

import math

import pytest
import torch

from fastrl import ops

NAN = float("nan")


def in_double(x, mask, shift_mean=True):
    """The definition over the counted elements alone, in float64, by torch's own variance."""
    counted = x.double()[mask]
    whitened = (x.double() - counted.mean()) / torch.sqrt(counted.var(unbiased=True) + 1e-8)
    return (whitened if shift_mean else whitened + counted.mean()).float()


def case(shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 3 + 1
    return x.to(dtype), torch.rand(shape, generator=generator) > 0.4


def test_by_hand(backend, close):
    # Counted: 1, 2, 6. Mean 3, unbiased variance (4 + 1 + 9) / 2 = 7. The 100 is not counted, but
    # comes out whitened as well.
    x = torch.tensor([1.0, 100.0, 2.0, 6.0])
    mask = torch.tensor([True, False, True, True])
    expected = torch.tensor([-2.0, 97.0, -1.0, 3.0]) / math.sqrt(7)
    close(ops.whiten(x, mask), expected)
    close(ops.whiten(x, mask, shift_mean=False), expected + 3)


@pytest.mark.parametrize(
    "shape", [(2,), (31,), (32,), (33,), (8, 300), (5000,), (3, 4, 5), (70001,)]
)
@pytest.mark.parametrize("shift_mean", [True, False])
def test_matches_float64(backend, shape, shift_mean, close):
    x, mask = case(shape)
    mask.view(-1)[:2] = True
    close(ops.whiten(x, mask, shift_mean), in_double(x, mask, shift_mean))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_give_unrounded_output(backend, dtype, close):
    x, mask = case((40, 50), dtype=dtype)
    y = ops.whiten(x, mask)
    assert y.dtype == torch.float32
    close(y, in_double(x.float(), mask), dtype)


def test_float64_is_computed_in_float64():
    x, mask = case((40, 50), dtype=torch.float64)
    counted = x[mask]
    expected = (x - counted.mean()) / torch.sqrt(counted.var() + 1e-8)
    torch.testing.assert_close(ops.whiten(x, mask), expected, rtol=1e-12, atol=1e-12)


def test_one_counted_element_is_nan(backend):
    x, mask = case((4, 9))
    mask[:] = False
    mask[1, 3] = True
    assert ops.whiten(x, mask).isnan().all()
    assert ops.whiten(torch.ones(1), torch.ones(1)).isnan().all()


@pytest.mark.parametrize("shape", [(0,), (4, 9), (3, 0)])
def test_nothing_counted_is_an_error(backend, shape):
    with pytest.raises(ValueError, match="mask counts no element"):
        ops.whiten(torch.zeros(shape), torch.zeros(shape))


def test_nan_outside_the_mask_does_not_leak(backend, close):
    x, mask = case((20, 30))
    expected = in_double(x, mask)
    y = ops.whiten(torch.where(mask, x, NAN), mask)
    close(y[mask], expected[mask])
    assert y[~mask].isnan().all()


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_counted_nan_or_infinity_shows(backend, value):
    x, mask = case((20, 30))
    mask[3, 4] = True
    x[3, 4] = value
    assert ops.whiten(x, mask).isnan().all()


def test_constant_input_is_zero(backend):
    y = ops.whiten(torch.full((3, 7), 0.1), torch.ones(3, 7))
    assert y.abs().max() < 1e-2
    assert ops.whiten(torch.full((9000,), 2.0), torch.ones(9000)).eq(0).all()


def test_a_large_mean_costs_no_digits(cpp):
    # The spread is 1e-4 of the mean: sums of squares in fp32 would lose all of it.
    x = 10000 + torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(100_000, dtype=torch.bool)
    y = ops.whiten(x, mask)
    torch.testing.assert_close(y, in_double(x, mask), rtol=1e-4, atol=1e-5)


def test_strides_and_mask_types(backend, close):
    x, mask = case((30, 40))
    expected = in_double(x, mask)
    close(ops.whiten(x.T, mask.T), expected.T)
    for kind in (torch.int64, torch.float32, torch.uint8):
        close(ops.whiten(x, mask.to(kind)), expected)
    close(ops.whiten(x[:, ::2], mask[:, ::2]), in_double(x[:, ::2], mask[:, ::2]))


def test_same_bits_for_any_number_of_threads():
    x, mask = case((300_001,))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.whiten(x, mask)
        torch.set_num_threads(2)
        two = ops.whiten(x, mask)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)


def test_gradient_comes_from_the_reference():
    x, mask = case((3, 5), dtype=torch.float64)
    mask[:, 0] = True
    assert torch.autograd.gradcheck(lambda t: ops.whiten(t, mask), (x.requires_grad_(),))


def test_compiled_equals_eager():
    x, mask = case((4, 30))
    compiled = torch.compile(lambda t, m: ops.whiten(t, m) * 2, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, mask), ops.whiten(x, mask) * 2)
    torch.library.opcheck(torch.ops.fastrl.whiten.default, (x, mask, True))


@pytest.mark.parametrize(
    "x, mask, error, words",
    [
        (torch.zeros(3), torch.ones(4), ValueError, r"mask has shape \(4,\)"),
        (torch.zeros(3, 1), torch.ones(3), ValueError, r"mask has shape \(3,\)"),
        (torch.zeros(3).int(), torch.ones(3), TypeError, "x must be floating point"),
        ([1.0], torch.ones(1), TypeError, "x must be a torch.Tensor, not list"),
        (torch.zeros(3, device="meta"), torch.ones(3), ValueError, "mask is on cpu"),
    ],
)
def test_bad_input_is_named(x, mask, error, words):
    with pytest.raises(error, match=words):
        ops.whiten(x, mask)
