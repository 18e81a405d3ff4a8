"""Running moments against numpy over everything seen."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from fastrl import PPOConfig, RunningMoments
from fastrl.train.moments import get_global_statistics, scaled_scores


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


def test_moments_go_on_from_a_file(tmp_path):
    accelerator = Accelerator(cpu=True)
    whole, first = RunningMoments(accelerator), RunningMoments(accelerator)
    batches = [torch.tensor([1.0, 4.0]), torch.tensor([-3.0, 2.0, 8.0])]
    for batch in batches:
        whole.update(batch)
    first.update(batches[0])
    first.save_to_json(tmp_path / "moments.json")
    resumed = RunningMoments.load_from_json(accelerator, str(tmp_path / "moments.json"))
    resumed.update(batches[1])
    for name in ("mean", "std", "var", "count"):
        assert float(getattr(resumed, name)) == float(getattr(whole, name)), name


def test_moments_read_what_trl_011_wrote(tmp_path):
    # As its save_to_json lays it out, after an update with [1, 4].
    text = '{\n  "count": 2.0,\n  "mean": 2.5,\n  "std": 2.1213203,\n  "var": 2.25\n}\n'
    (tmp_path / "moments.json").write_text(text)
    running = RunningMoments.load_from_json(Accelerator(cpu=True), tmp_path / "moments.json")
    running.update(torch.tensor([-3.0, 2.0, 8.0]))
    values = np.array([1.0, 4.0, -3.0, 2.0, 8.0])
    np.testing.assert_allclose(running.mean.item(), values.mean())
    np.testing.assert_allclose(running.std.item(), values.std(ddof=1))


def test_global_statistics_of_what_a_mask_counts():
    xs = torch.tensor([[1.0, 2.0, float("nan")], [4.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    mean, var, count = get_global_statistics(Accelerator(cpu=True), xs, mask)
    assert (mean.item(), var.item(), count) == pytest.approx((7 / 3, 14 / 9, 3))
    mean, var, count = get_global_statistics(Accelerator(cpu=True), xs[1])
    assert (mean.item(), var.item(), count) == pytest.approx((22 / 3, 50 / 9, 3))
