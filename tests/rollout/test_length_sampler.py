"""Random lengths of responses."""

from __future__ import annotations

import numpy as np
import pytest

from fastrl.rollout.length_sampler import LengthSampler


def test_length_sampler_draws_every_length_but_the_last():
    np.random.seed(0)
    sampler = LengthSampler(4, 7)
    drawn = [sampler() for _ in range(300)]
    assert {type(length) for length in drawn} == {int}
    counts = np.bincount(drawn, minlength=8)
    assert counts[[0, 1, 2, 3, 7]].sum() == 0
    assert (counts[4:7] > 70).all()  # 100 each, give or take 8


def test_length_sampler_follows_numpys_seed_as_trl_did():
    np.random.seed(3)
    # What np.random.choice(range(2, 16)) gave TRL 0.7.11's sampler with this seed.
    expected = [int(np.random.choice(list(range(2, 16)))) for _ in range(5)]
    np.random.seed(3)
    sampler = LengthSampler(2, 16)
    assert [sampler() for _ in range(5)] == expected


def test_length_sampler_without_a_length():
    with pytest.raises(ValueError, match=r"LengthSampler\(5, 6\) always gives 5"):
        LengthSampler(5, 5)
