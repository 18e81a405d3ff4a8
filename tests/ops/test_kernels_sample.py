"""The GPU kernels of sample, penalise and the tiles of the linear head against references."""

from __future__ import annotations

import math

import pytest
import torch

from fastrl.ops._linear_tiles import WholeRows
from fastrl.ops.penalise import PENALISE
from fastrl.ops.sample import SAMPLE

OPTIONS = [  # temperature, top_k, top_p, min_p
    (1.0, 0, 1.0, 0.0),
    (0.0, 0, 1.0, 0.0),
    (0.7, 5, 1.0, 0.0),
    (1.0, 300, 1.0, 0.0),
    (1.0, 0, 0.9, 0.0),
    (1.0, 0, 0.0, 0.0),
    (1.0, 0, 0.999999, 0.0),
    (1.3, 100, 0.95, 0.05),
]


# In CUDA C++ only.
only_cuda = pytest.mark.parametrize(
    "kernels", ["cuda on the CPU", pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True
)


def reference(op):
    return op._backends["reference"]


def streams(rows, device):
    generator = torch.Generator().manual_seed(2)
    seeds = torch.randint(-(2**62), 2**62, (rows,), generator=generator)
    steps = torch.randint(0, 2**40, (rows,), generator=generator)
    return seeds.to(device), steps.to(device)


@pytest.mark.parametrize("vocab", [1, 3, 130, 5003])
def test_noise_has_the_reference_bits(kernels, vocab):
    seeds, steps = streams(5, kernels.device)
    expected = reference(SAMPLE).noise(seeds, steps, vocab)
    assert torch.equal(kernels("sample").noise(seeds, steps, vocab), expected)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "vocab, dtype, spread",
    [
        (1, torch.float32, 1.0),
        (65, torch.float32, 0.0),
        (1000, torch.bfloat16, 3.0),
        (5003, torch.float32, 6.0),
        (3001, torch.float16, 0.1),
    ],
)
def test_draws_the_reference_tokens(kernels, options, vocab, dtype, spread):
    slow = kernels.backend == "triton" and kernels.device == "cpu"
    if slow and vocab > 4000 and options[1] and options[2] < 1.0:
        pytest.skip("two filters over several blocks: minutes in the interpreter")
    rows = 2 if slow else 6
    seeds, steps = streams(rows, kernels.device)
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn(rows, vocab, generator=generator) * spread).to(dtype).to(kernels.device)
    if vocab > 100:
        logits[0, 5:50] = -math.inf
        logits[1, 7:90] = logits[1, 6]  # ties
    actual = kernels("sample").forward(logits, seeds, steps, *options)
    expected = reference(SAMPLE).forward(logits, seeds, steps, *options)
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1:], expected[1:], rtol=2e-6, atol=4e-6)


def test_rows_that_cannot_be_sampled_are_nan_and_probability_one_keeps_its_digits(kernels):
    logits = torch.zeros(5, 10, device=kernels.device)
    logits[1, 3] = math.nan
    logits[2, 4] = math.inf
    logits[3] = -math.inf
    logits[4, 1:] = -20.0
    seeds, steps = streams(5, kernels.device)
    tokens, logp, logp_full = kernels("sample").forward(logits, seeds, steps, 1.0, 0, 1.0, 0.0)
    assert tokens[1:].tolist() == [0, 0, 0, 0]
    assert logp.isnan().tolist() == logp_full.isnan().tolist() == [False, True, True, True, False]
    exact = torch.tensor(-math.log1p(9 * math.exp(-20.0)))
    torch.testing.assert_close(logp[4].cpu(), exact, rtol=1e-5, atol=0)


@only_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_penalise(kernels, dtype):
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(4, 2001, generator=generator).to(dtype).to(kernels.device)
    seen = torch.randint(-1, 2001, (4, 1500), generator=generator).to(kernels.device)
    actual = kernels("penalise").forward(logits, seen, 1.3)
    torch.testing.assert_close(actual, reference(PENALISE).forward(logits, seen, 1.3))
    seen[2, 700] = 2001
    actual = kernels("penalise").forward(logits, seen, 1.3)
    assert actual.isnan().all(dim=1).tolist() == [False, False, True, False]


@only_cuda
@pytest.mark.parametrize("columns", [700, 64, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_of_columns_are_whole_rows(kernels, columns, dtype):
    """Folded in tiles and any order, a row gives what it gives at once, gradients too."""
    tiles = kernels("tiles")
    vocab = 700 if columns > 1 else 9
    generator = torch.Generator().manual_seed(5)
    logits = (torch.randn(6, vocab, generator=generator) * 4).to(dtype).to(kernels.device)
    logits[1] += 80.0
    logits[2, 3] = 60.0
    targets = torch.randint(0, vocab, (6,), generator=generator).to(kernels.device)
    targets[2], targets[3] = 3, vocab - 1
    whole = WholeRows.start(6, True, logits.device)
    WholeRows.fold(whole, slice(0, 6), logits.double(), targets, 0, 0.8)
    expected = WholeRows.finish(whole, vocab, 0.8)
    sums = tiles.start(6, True, logits.device)
    places = [slice(i, min(i + columns, vocab)) for i in range(0, vocab, columns)]
    for rows in (slice(3, 6), slice(0, 3)):
        for place in reversed(places):
            tile = logits[rows, place]
            tiles.fold(sums, rows, tile, targets[rows], place.start, 0.8)
    found = tiles.finish(sums, vocab, 0.8)
    pairs = zip(
        (found.logp, found.entropy, found.lse, found.statistics),
        (expected.logp, expected.entropy, expected.lse, expected.statistics),
        strict=True,
    )
    for actual, value in pairs:
        torch.testing.assert_close(actual.double(), value.double(), rtol=2e-6, atol=5e-6)
    g, h = torch.randn(2, 6, generator=generator).to(kernels.device)
    gradient = torch.empty_like(logits)
    for place in places:
        where = (logits[:, place], targets, place.start, found)
        tiles.gradient(*where, g, h, 0.8, out=gradient[:, place])
    grads = (g.double(), h.double())
    exact = WholeRows.gradient(
        logits.double(), targets, 0, expected, *grads, 0.8, out=logits.double()
    )
    rounding = 1e-5 if dtype == torch.float32 else 2.0**-8
    torch.testing.assert_close(gradient.double(), exact, rtol=rounding, atol=2e-6)
