"""Metrics of slices whose rows are spread over passes."""

import pytest
import torch
from accelerate import Accelerator

from fastrl.train.host_metrics import HostMetrics
from fastrl.train.metrics import Metrics
from fastrl.train.slice_metrics import SliceMetrics


def test_a_row_adds_to_its_slice_whatever_pass_it_is_in():
    # slice 0: rows with sums 1, 3 of 2, 2 tokens; slice 1: 5 of 1 token, and a row without tokens.
    metrics = Metrics(Accelerator(cpu=True))
    slices = SliceMetrics(2, 2)
    slices.ratio("x", torch.tensor([1.0, 5.0]), torch.tensor([2, 1]), torch.tensor([0, 1]))
    slices.least("low", torch.tensor([0.5, 5.0]), torch.tensor([0, 1]))
    slices.greatest("high", torch.tensor([0.5, 5.0]), torch.tensor([0, 1]))
    slices.flush(metrics)
    assert metrics.collect() == {}
    slices.ratio("x", torch.tensor([3.0, 0.0]), torch.tensor([2, 0]), torch.tensor([0, 1]))
    slices.least("low", torch.tensor([0.1, torch.nan]), torch.tensor([0, 1]))
    slices.greatest("high", torch.tensor([0.1, torch.nan]), torch.tensor([0, 1]))
    slices.flush(metrics)
    found = metrics.collect()
    assert found["x"] == pytest.approx((4 / 4 + 5 / 1) / 2)
    assert found["low"] == pytest.approx((0.1 + 5.0) / 2)
    assert found["high"] == pytest.approx((0.5 + 5.0) / 2)


def test_a_slice_without_tokens_counts_as_0_and_one_without_extreme_not_at_all():
    metrics = Metrics(Accelerator(cpu=True))
    slices = SliceMetrics(2, 1)
    of = torch.tensor([0, 1])
    slices.ratio("x", torch.tensor([6.0, 0.0]), torch.tensor([2, 0]), of)
    slices.least("low", torch.tensor([3.0, torch.nan]), of)
    slices.flush(metrics)
    assert metrics.collect() == {"x": 1.5, "low": 3.0}


def test_host_metrics_are_means_without_nan_and_none_where_all_are():
    held = HostMetrics()
    for value in (1.0, float("nan"), 3.0):
        held.add("a", value)
    held.add("b", float("nan"))
    held.replace("n", 5)
    held.replace("n", 9)
    assert held.collect() == {"a": 2.0, "b": None, "n": 9}
    assert held.collect() == {}
