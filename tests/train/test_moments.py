"""Running moments against numpy over everything seen."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from fastrl import PPOConfig, RunningMoments
from fastrl.train.moments import scaled_scores


def test_running_moments_equal_those_of_all_scores():
    rng = np.random.default_rng(0)
    running = RunningMoments(Accelerator(cpu=True))
    seen = []
    for size in (5, 1, 17, 64):
        batch = rng.normal(3.0, 2.0, size).astype(np.float32)
        seen.append(batch)
        mean, std = running.update(torch.from_numpy(batch))
        np.testing.assert_allclose(mean, batch.mean(), rtol=1e-5)
        if size > 1:
            np.testing.assert_allclose(std, batch.std(ddof=1), rtol=1e-5)
        everything = np.concatenate(seen)
        np.testing.assert_allclose(running.mean.item(), everything.mean(), rtol=1e-5)
        np.testing.assert_allclose(running.std.item(), everything.std(ddof=1), rtol=1e-5)


def test_scores_whose_squares_overflow_fp32_leave_finite_moments():
    running = RunningMoments(Accelerator(cpu=True))
    running.update(torch.tensor([3e38, -1e38, 0.0]))
    values = np.array([3e38, -1e38, 0.0])
    np.testing.assert_allclose(running.std.item(), values.std(ddof=1), rtol=1e-6)


def test_a_first_batch_of_one_has_no_deviation():
    running = RunningMoments(Accelerator(cpu=True))
    running.update(torch.tensor([2.0]))
    assert running.std.isnan()
    assert running.mean == 2.0


def test_scaling_by_the_deviation_of_one_score_is_refused():
    running = RunningMoments(Accelerator(cpu=True))
    config = PPOConfig(batch_size=1, use_score_scaling=True)
    with pytest.raises(ValueError, match="use_score_scaling: one score has no deviation"):
        scaled_scores([torch.tensor(2.0)], running, config)
    assert running.mean == 0


def test_scaling_norm_and_clip():
    running = RunningMoments(Accelerator(cpu=True))
    config = PPOConfig(use_score_scaling=True, use_score_norm=True, score_clip=1.0)
    scores = [torch.tensor(v) for v in (1.0, 2.0, 6.0)]
    got = scaled_scores(scores, running, config)
    values = np.array([1.0, 2.0, 6.0])
    expected = np.clip((values - 3.0) / values.std(ddof=1), -1, 1)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5)


def test_dtypes_of_scores():
    running = RunningMoments(Accelerator(cpu=True))
    plain = PPOConfig()
    assert scaled_scores([torch.tensor(3)], running, plain).dtype == torch.float32
    assert scaled_scores([torch.tensor([3.0]).half()], running, plain).dtype == torch.float16
