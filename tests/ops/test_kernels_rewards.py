"""The GPU kernels of gae, whiten and shaped_rewards against their references."""

from __future__ import annotations

import math

import pytest
import torch

from fastrl.ops.gae import GAE
from fastrl.ops.shaped_rewards import SHAPED_REWARDS
from fastrl.ops.whiten import WHITEN


def reference(op):
    return op._backends["reference"]


def random(kernels, *shape):
    """values, values, mask, with NaN where the mask does not count."""
    generator = torch.Generator().manual_seed(sum(shape))
    a, b = torch.randn(2, *shape, generator=generator)
    mask = torch.rand(shape, generator=generator) > 0.3
    a[~mask], b[~mask] = math.nan, math.nan
    return a.to(kernels.device), b.to(kernels.device), mask.to(kernels.device)


@pytest.mark.parametrize(
    "shape, gamma, lam",
    [  # one column, one vector, ragged, one tile and the next, several tiles and a rest
        ((1, 1), 1.0, 0.95),
        ((5, 3), 0.9, 0.0),
        ((3, 4), 0.99, 1.0),
        ((2, 130), 1.5, 1.0),
        ((2, 1023), 1.0, 0.95),
        ((2, 1024), 1.0, 0.95),
        ((2, 1025), 1.0, 0.95),
        ((1, 4100), 1.0, 1.0),
        ((1, 4100), 0.999, 0.9),
    ],
)
def test_gae(kernels, shape, gamma, lam):
    rewards, values, mask = random(kernels, *shape)
    actual = kernels("gae").forward(rewards, values, mask, gamma, lam)
    exact = [t.double() for t in (rewards, values)]
    expected = reference(GAE).forward(*exact, mask, gamma, lam)
    for found, value in zip(actual, expected, strict=True):
        assert found.dtype == torch.float32
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(found.double(), value, rtol=2e-5, atol=2e-6 * scale)


def test_gae_without_rows_or_columns(kernels):
    for shape in ((0, 5), (3, 0)):
        rewards, values, mask = random(kernels, *shape)
        advantages, returns = kernels("gae").forward(rewards, values, mask, 0.9, 0.9)
        assert advantages.shape == returns.shape == shape


def test_gae_nan_goes_to_earlier_columns_only(kernels):
    rewards = torch.zeros(1, 2000, device=kernels.device)
    rewards[0, 1500] = math.nan
    mask = torch.ones_like(rewards, dtype=torch.bool)
    advantages, _ = kernels("gae").forward(rewards, torch.zeros_like(rewards), mask, 1.0, 0.9)
    assert advantages[0, :1501].isnan().all()
    assert torch.all(advantages[0, 1501:] == 0)


@pytest.mark.parametrize("n", [2, 3, 5, 100, 4096, 4099, 50_001])
@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten(kernels, n, shift_mean):
    x, _, mask = random(kernels, n)
    mask[:2] = True
    x = torch.where(x.isnan(), 7.0, x * 3 + 1000)  # a mean that swamps the spread in sums of x^2
    actual = kernels("whiten").forward(x, mask, shift_mean)
    expected = reference(WHITEN).forward(x.double(), mask, shift_mean)
    torch.testing.assert_close(actual.double(), expected, rtol=2e-5, atol=1e-4)
    again = kernels("whiten").forward(x, mask, shift_mean)
    assert torch.equal(actual, again)


def test_whiten_with_several_blocks_a_program(kernels, monkeypatch):
    if kernels.backend == "triton":
        monkeypatch.setattr(kernels("whiten"), "SHARES", 2)
    x, _, mask = random(kernels, 150_001 if kernels.backend == "cuda" else 20_001)
    x = torch.where(x.isnan(), 7.0, x + torch.arange(len(x), device=x.device) * 1e-3)
    actual = kernels("whiten").forward(x, mask, True)
    expected = reference(WHITEN).forward(x.double(), mask, True)
    torch.testing.assert_close(actual.double(), expected, rtol=2e-5, atol=2e-6)


def test_whiten_at_an_odd_address(kernels):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(kernels.device)
    mask = torch.ones(1000, dtype=torch.bool, device=kernels.device)
    actual = kernels("whiten").forward(x[1:], mask[3:].new_ones(1000)[1:], True)
    expected = reference(WHITEN).forward(x[1:].double(), mask[1:], True)
    torch.testing.assert_close(actual.double(), expected, rtol=2e-5, atol=2e-6)


def test_whiten_of_nothing_or_one_is_nan_and_ignores_what_is_masked(kernels):
    x = torch.tensor([1.0, 2.0, math.nan, 4.0], device=kernels.device)
    none = torch.zeros(4, dtype=torch.bool, device=kernels.device)
    assert kernels("whiten").forward(x, none, True).isnan().all()
    one = torch.tensor([True, False, False, False], device=kernels.device)
    assert kernels("whiten").forward(x, one, True).isnan().all()
    three = torch.tensor([True, True, False, True], device=kernels.device)
    found = kernels("whiten").forward(x, three, True)
    assert found.isnan().tolist() == [False, False, True, False]
    assert kernels("whiten").forward(x[:0], none[:0], True).shape == (0,)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 300), (2, 1030)])
@pytest.mark.parametrize("kind", ["kl", "abs", "mse"])
def test_shaped_rewards(kernels, shape, kind):
    generator = torch.Generator().manual_seed(1)
    logp, ref = torch.randn(2, *shape, generator=generator).to(kernels.device)
    mask = (torch.rand(shape, generator=generator) > 0.7).to(kernels.device)
    mask[:, 0] = True
    scores = torch.randn(shape[0], generator=generator).to(kernels.device)
    arguments = (scores, logp, ref, mask, 0.2, kind)
    actual = kernels("shaped_rewards").forward(*arguments)
    expected = reference(SHAPED_REWARDS).forward(*arguments)
    torch.testing.assert_close(actual, expected, rtol=2e-6, atol=1e-7)


def test_shaped_rewards_without_a_counted_token_are_nan(kernels):
    logp = torch.zeros(2, 5, device=kernels.device)
    mask = torch.tensor([[False] * 5, [True] * 5], device=kernels.device)
    scores = torch.ones(2, device=kernels.device)
    rewards, kl = kernels("shaped_rewards").forward(scores, logp, logp, mask, 0.2, "kl")
    assert rewards[0].isnan().all()
    assert rewards[1].tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert torch.all(kl == 0)
