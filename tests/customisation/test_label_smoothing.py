"""DPO's label smoothing, in the loss of TRL 0.7 to 0.28 and where it has no part."""

from __future__ import annotations

import math

import pytest
import torch

from fastrl import DPOConfig
from fastrl.algos.dpo_losses import LOSSES, SMOOTHED, Pairs


def pairs(smoothing: float) -> Pairs:
    """β = 0.5, log-ratios 3 and -1: a margin of 2."""
    made = [torch.tensor([x]) for x in (-7.0, -9.0, -10.0, -8.0, 4.0, 5.0)]
    return Pairs(*made, torch.tensor(1.0), 0.5, smoothing, 0.05, "reverse_kl", 1.0)


def test_smoothing_of_the_sigmoid_by_hand():
    """-(1 - ε) log σ(2) - ε log σ(-2), conservative DPO (E. Mitchell, 2023)."""
    right, flipped = math.log1p(math.exp(-2.0)), math.log1p(math.exp(2.0))
    for smoothing in (0.0, 0.1, 0.4):
        expected = (1 - smoothing) * right + smoothing * flipped
        assert LOSSES["sigmoid"](pairs(smoothing)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_which_losses_it_smooths(name):
    changed = not torch.equal(LOSSES[name](pairs(0.1)), LOSSES[name](pairs(0.2)))
    assert changed == (name in SMOOTHED)


def test_a_loss_that_it_does_not_smooth_is_told():
    with pytest.warns(UserWarning, match=r"label_smoothing=0.1 does nothing for loss_type hinge"):
        DPOConfig("out", use_cpu=True, loss_type="hinge", label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\], got 1.5"):
        DPOConfig("out", use_cpu=True, label_smoothing=1.5)
