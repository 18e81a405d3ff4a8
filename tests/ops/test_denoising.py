"""A denoising step as a Gaussian: by hand, and against other definitions of the same."""

from __future__ import annotations

import math

import pytest
import torch

from fastrl.ops.denoising import (
    ddim_transition,
    gaussian_logp,
    guide,
    like_batch,
    split_prediction,
)


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_step_by_hand():
    alpha, after = torch.tensor(0.5), torch.tensor(0.8)
    mean, deviation = ddim_transition(torch.tensor(2.0), torch.tensor(-1.0), alpha, after, eta=1.0)
    assert deviation.item() == pytest.approx(math.sqrt(0.15))  # 0.2 / 0.5 · (1 − 0.5 / 0.8)
    assert mean.item() == pytest.approx(2 * math.sqrt(0.8) - math.sqrt(0.05))
    mean, deviation = ddim_transition(torch.tensor(2.0), torch.tensor(-1.0), alpha, after, eta=0.0)
    assert deviation.item() == 0
    assert mean.item() == pytest.approx(2 * math.sqrt(0.8) - math.sqrt(0.2))


def test_full_noise_is_the_posterior_of_ddpm():
    """q(x_before | x, clean) of Ho et al. 2020, eq. 7."""
    clean, noise = drawn(0, 2, 3, 4, 4), drawn(1, 2, 3, 4, 4)
    before, now = 0.9, 0.7  # cumulative alphas
    beta = 1 - now / before
    noisy = math.sqrt(now) * clean + math.sqrt(1 - now) * noise
    mean, deviation = ddim_transition(
        clean,
        noise,
        torch.tensor(now, dtype=clean.dtype),
        torch.tensor(before, dtype=clean.dtype),
        1.0,
    )
    expected = (math.sqrt(before) * beta * clean + math.sqrt(1 - beta) * (1 - before) * noisy) / (
        1 - now
    )
    torch.testing.assert_close(mean, expected)
    assert deviation.item() == pytest.approx(math.sqrt((1 - before) / (1 - now) * beta))


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_every_kind_of_prediction_tells_signal_and_noise(kind):
    clean, noise, alpha = drawn(2, 3, 2, 2, 2), drawn(3, 3, 2, 2, 2), drawn(4, 3, 1, 1, 1).sigmoid()
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    output = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * clean,
    }[kind]
    found = split_prediction(output, noisy, alpha, kind)
    torch.testing.assert_close(found[0], clean)
    torch.testing.assert_close(found[1], noise)


def test_an_unknown_kind():
    with pytest.raises(ValueError, match=r"prediction_type='flow'.* one of \('epsilon'"):
        split_prediction(*[torch.ones(1)] * 2, torch.tensor(0.5), "flow")


def test_the_density_is_torchs_and_reaches_the_mean_alone():
    sample, mean = drawn(5, 2, 3, 4, 4), drawn(6, 2, 3, 4, 4).requires_grad_()
    sample.requires_grad_()
    deviation = torch.tensor([0.5, 2.0]).double().view(2, 1, 1, 1)
    found = gaussian_logp(sample, mean, deviation)
    expected = torch.distributions.Normal(mean, deviation.expand_as(mean)).log_prob(sample)
    torch.testing.assert_close(found, expected.mean(dim=(1, 2, 3)))
    found.sum().backward()
    assert sample.grad is None
    torch.testing.assert_close(
        mean.grad, (sample.detach() - mean.detach()) / deviation.square() / 48
    )
    assert gaussian_logp(sample, sample, torch.tensor(0.0)).isnan().all()


def test_guidance():
    without, along = drawn(7, 2, 3, 4, 4), drawn(8, 2, 3, 4, 4)
    torch.testing.assert_close(guide(without, along, 1.0), along)
    torch.testing.assert_close(guide(without, along, 3.0), 3 * along - 2 * without)
    guided, rescaled = guide(without, along, 5.0), guide(without, along, 5.0, 1.0)
    for row, full, one in zip(rescaled, guided, along, strict=True):
        assert row.std().item() == pytest.approx(one.std().item())
        torch.testing.assert_close(row / full, torch.full_like(row, (one.std() / full.std())))
    torch.testing.assert_close(guide(without, along, 5.0, 0.25), 0.25 * rescaled + 0.75 * guided)


def test_numbers_per_row():
    batch = torch.ones(2, 3, 4, 4, dtype=torch.float16)
    rows = like_batch(torch.tensor([1.0, 2.0]).half(), batch)
    assert rows.dtype == torch.float32 and (batch * rows)[1].eq(2).all()
    assert like_batch(torch.tensor(3.0), batch).shape == (1, 1, 1, 1)
