"""KL penalties and controllers against arithmetic done by hand."""

import math

import pytest
import torch

from fastrl import AdaptiveKLController, FixedKLController
from fastrl.algos.kl_control import kl_per_token


def test_adaptive_controller_moves_in_proportion():
    controller = AdaptiveKLController(init_kl_coef=0.2, target=6.0, horizon=10000)
    controller.update(6.6, 100)  # 10 % over target: 0.2 * (1 + 0.1 * 0.01)
    assert controller.value == pytest.approx(0.2002)


@pytest.mark.parametrize(("current", "error"), [(600.0, 0.2), (-50.0, -0.2)])
def test_adaptive_controller_is_clipped(current, error):
    controller = AdaptiveKLController(init_kl_coef=0.5, target=6.0, horizon=1000)
    controller.update(current, 10)
    assert controller.value == pytest.approx(0.5 * (1 + error * 0.01))


def test_fixed_controller_stays():
    controller = FixedKLController(0.3)
    controller.update(100.0, 1000)
    assert controller.value == 0.3


@pytest.mark.parametrize(("kind", "expected"), [("kl", -2.0), ("abs", 2.0), ("mse", 2.0)])
def test_sampled_penalties(kind, expected):
    logp, ref_logp = torch.tensor([[-3.0]]), torch.tensor([[-1.0]])
    assert kl_per_token(kind, logp, ref_logp).item() == expected


def test_full_penalty_is_the_kl_of_two_coins():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert kl_per_token("full", p.log(), q.log()).item() == pytest.approx(expected, rel=1e-6)
