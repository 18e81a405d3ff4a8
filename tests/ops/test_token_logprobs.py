"""token_logprobs: by hand, against float64 autograd, at the edges of what floats can hold."""

from __future__ import annotations

import math

import pytest
import torch

from fastrl import ops
from tests.ops.token_logprobs_cases import (
    DTYPES,
    INF,
    case,
    close_gradient,
    gradient,
    gradient_in_double,
    in_double,
)


def test_by_hand(backend, close):
    # exp: 1, 2, 5 of 8.  H = -(1/8 log 1/8 + 2/8 log 2/8 + 5/8 log 5/8).
    logits = torch.tensor([[0.0, math.log(2), math.log(5)]] * 2)
    logp, entropy = ops.token_logprobs(logits, torch.tensor([0, 2]))
    close(logp, torch.tensor([math.log(1 / 8), math.log(5 / 8)]))
    expected = -(math.log(1 / 8) / 8 + math.log(1 / 4) / 4 + 5 * math.log(5 / 8) / 8)
    close(entropy, torch.full((2,), expected))
    # At temperature 1/2 the exponentials are squared: 1, 4, 25 of 30.
    close(ops.token_logprobs(logits, torch.tensor([0, 2]), 0.5)[0][1], torch.tensor(25 / 30).log())


def test_gradient_by_hand(backend, close):
    logits = torch.tensor([[0.0, math.log(2), math.log(5)]])
    d_logits = gradient(logits, torch.tensor([1]), torch.tensor([2.0]), None, 0.5)
    # 2 / (1/2) * ([0, 1, 0] - [1, 4, 25] / 30)
    close(d_logits, 4 * torch.tensor([[-1 / 30, 26 / 30, -25 / 30]]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("vocab", "temperature"),
    [
        (1, 0.7),
        (2, 1.0),
        (7, 0.7),
        (16, 1.5),
        (17, 1.0),
        (64, 0.7),
        (257, 0.9),
        (2049, 1.0),
        (4500, 0.7),
    ],
)
def test_matches_float64(backend, dtype, vocab, temperature, close):
    logits, targets, g, h = case(9, vocab, dtype)
    logp, entropy = ops.token_logprobs(logits, targets, temperature)
    assert logp.dtype == entropy.dtype == torch.float32
    expected = in_double(logits, targets, temperature)
    close((logp, entropy), tuple(t.float() for t in expected), dtype)
    for g_or_none, h_or_none in ((g, h), (g, None), (None, h)):
        actual = gradient(logits, targets, g_or_none, h_or_none, temperature)
        zeros = torch.zeros_like(g)
        wanted = [zeros if t is None else t for t in (g_or_none, h_or_none)]
        close_gradient(actual, gradient_in_double(logits, targets, *wanted, temperature), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [5, 31, 257, 4099])
def test_every_instruction_set(instruction_set, dtype, vocab, close):
    logits, targets, g, h = case(7, vocab, dtype)
    logits[2, vocab // 2] = -INF
    targets[2] = 0
    with ops.use_backend("cpp"):
        results = ops.token_logprobs(logits, targets, 0.9)
        d_logits = gradient(logits, targets, g, h, 0.9)
    close(results, tuple(t.float() for t in in_double(logits, targets, 0.9)), dtype)
    finite = logits.masked_fill(logits == -INF, -1e4)
    close_gradient(d_logits, gradient_in_double(finite, targets, g, h, 0.9), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_of_gradients_is_to_nearest_even(instruction_set, dtype):
    # One column: d logit = g (1 - p) = 0. Two equal columns: g / 2, halves of all kinds of floats.
    generator = torch.Generator().manual_seed(3)
    g = torch.randn(4000, generator=generator) * 10.0 ** torch.randint(
        -9, 5, (4000,), generator=generator
    )
    g[:3] = torch.tensor([INF, -INF, float("nan")])
    # Half way between two neighbours: the dropped bits are 1 and then zeros.
    dropped = 16 if dtype == torch.bfloat16 else 13
    bits = g[1000:2000].view(torch.int32) >> dropped << dropped
    g[1000:2000] = (bits | 1 << (dropped - 1)).view(torch.float32)
    logits = torch.zeros(4000, 2, dtype=dtype)
    with ops.use_backend("cpp"):
        actual = gradient(logits, torch.zeros(4000, dtype=torch.int64), g, None)
    torch.testing.assert_close(actual[:, 0], (g / 2).to(dtype), rtol=0, atol=0, equal_nan=True)


def test_minus_infinity_carries_nothing(backend, close):
    logits, targets, g, h = case(6, 50)
    kept = torch.arange(0, 50, 2)
    targets = targets // 2 * 2
    masked = torch.full_like(logits, -INF)
    masked[:, kept] = logits[:, kept]
    expected = in_double(logits[:, kept], targets // 2)
    close(ops.token_logprobs(masked, targets), tuple(t.float() for t in expected))
    d_logits = gradient(masked, targets, g, h)
    assert (d_logits[:, 1::2] == 0).all()
    small = gradient_in_double(logits[:, kept], targets // 2, g, h)
    close_gradient(d_logits[:, kept], small, torch.float32)


def test_minus_infinity_fills_the_first_blocks(backend, close):
    logits, targets, g, h = case(3, 6000)
    logits[:, :4500] = -INF
    targets[:] = torch.tensor([4500, 5999, 5000])
    expected = in_double(logits[:, 4500:], targets - 4500)
    close(ops.token_logprobs(logits, targets), tuple(t.float() for t in expected))
    d_logits = gradient(logits, targets, g, h)
    assert not d_logits.isnan().any()


def test_a_target_that_cannot_be(backend, close):
    logits, targets, g, h = case(2, 30)
    logits[0, targets[0]] = -INF
    logp, entropy = ops.token_logprobs(logits, targets)
    assert logp[0] == -INF
    assert logp[1].isfinite()
    assert entropy.isfinite().all()
    d_logits = gradient(logits, targets, g, h)
    assert d_logits.isfinite().all()
    close(d_logits[0, targets[0]], g[0])  # d (z_y - lse) / d z_y = 1 - p_y = 1


def test_only_one_token_can_be(backend):
    logits = torch.full((1, 40), -INF)
    logits[0, 7] = 3.0
    logp, entropy = ops.token_logprobs(logits, torch.tensor([7]))
    assert logp.item() == 0.0
    assert entropy.item() == 0.0
    ones = torch.ones(1)
    assert (gradient(logits, torch.tensor([7]), ones, ones) == 0).all()


def test_a_row_without_any_possible_token_is_nan(backend):
    logits, targets, _, _ = case(3, 40)
    logits[1] = -INF
    logp, entropy = ops.token_logprobs(logits, targets)
    assert logp.isnan().tolist() == [False, True, False]
    assert entropy.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("junk", [INF, float("nan")])
@pytest.mark.parametrize("column", [0, 3, 2100])
def test_junk_stays_in_its_row_and_shows(backend, junk, column):
    logits, targets, g, h = case(3, 3000)
    targets[1] = 3
    logits[1, column] = junk
    logp, entropy = ops.token_logprobs(logits, targets)
    assert logp.isnan().tolist() == [False, True, False]
    assert entropy.isnan().tolist() == [False, True, False]
    d_logits = gradient(logits, targets, g, h)
    assert d_logits[1].isnan().any()
    assert d_logits[[0, 2]].isfinite().all()


@pytest.mark.parametrize("offset", [-200.0, -3e4, 3e4, 1e6])
def test_a_common_offset_changes_nothing(backend, offset, close):
    steps = torch.randint(-20, 20, (4, 3000), generator=torch.Generator().manual_seed(1)) / 4.0
    _, targets, g, h = case(4, 3000)
    close(ops.token_logprobs(steps + offset, targets), ops.token_logprobs(steps, targets))
    moved = gradient(steps + offset, targets, g, h)
    close_gradient(moved, gradient_in_double(steps, targets, g, h), torch.float32)


def test_logits_from_one_end_of_fp16_to_the_other(backend, close):
    logits, targets, g, h = case(5, 300, torch.float16)
    logits[:, ::2] = -3e4
    logits[0, 5] = 3e4
    logits[1, 4] = 6e4
    targets[:2] = torch.tensor([5, 7])
    logp, entropy = ops.token_logprobs(logits, targets)
    expected_logp, expected_entropy = in_double(logits, targets)
    close((logp, entropy), (expected_logp.float(), expected_entropy.float()), torch.float16)
    d_logits = gradient(logits, targets, g, h)
    close_gradient(d_logits, gradient_in_double(logits, targets, g, h), torch.float16)


def test_the_lowest_float_as_a_mask(backend, close):
    # Masks are often written as finfo.min; a row of nothing else is then uniform.
    logits, targets, _, _ = case(3, 100)
    logits[0] = torch.finfo(torch.float32).min
    logits[1, 50:] = torch.finfo(torch.float32).min
    targets[1] = 3
    logp, entropy = ops.token_logprobs(logits, targets)
    close(logp[0], torch.tensor(-math.log(100.0)))
    close(entropy[0], torch.tensor(math.log(100.0)))
    expected = in_double(logits[1:2, :50], targets[1:2])
    close((logp[1:2], entropy[1:2]), tuple(t.float() for t in expected))


@pytest.mark.parametrize("gap", [10.0, 17.0, 25.0, 60.0])
def test_near_certainty_keeps_its_digits(backend, gap):
    # p = 1 / (1 + n e^-gap): from a gap of 17 on, z - lse is exactly 0 in fp32.
    n = 99
    logits = torch.zeros(1, n + 1)
    logits[0, 42] = gap
    targets = torch.tensor([42])
    others = n * math.exp(-gap)
    logp, entropy = ops.token_logprobs(logits, targets)
    assert logp.item() == pytest.approx(-math.log1p(others), rel=1e-5)
    p = 1 / (1 + others)
    true_entropy = math.log1p(others) + others * p * gap
    assert entropy.item() == pytest.approx(true_entropy, rel=1e-4, abs=2e-7)
    d_logits = gradient(logits, targets, torch.ones(1), None)
    assert d_logits[0, 42].item() == pytest.approx(others * p, rel=1e-5)
    assert d_logits[0, 0].item() == pytest.approx(-others * p / n, rel=1e-5)


def test_rows_without_incoming_gradient_cost_nothing_even_as_nan(backend):
    logits, targets, g, _ = case(4, 100)
    logits[1] = float("nan")
    logits[2] = -INF
    g[1:3] = 0
    d_logits = gradient(logits, targets, g, torch.zeros(4))
    assert (d_logits[1:3] == 0).all()
    assert (d_logits[[0, 3]] != 0).any(dim=1).all()
    everything_masked = gradient(logits, targets, torch.zeros(4), torch.zeros(4))
    assert (everything_masked == 0).all()
