"""Masked means and variances, stacking and the way to the host."""

import numpy as np
import pytest
import torch

from fastrl.train.statistics import Masked, check_finite, flatten_dict, stack_dicts, to_host


def test_masked_mean_and_unbiased_variance():
    x = torch.tensor([[1.0, 2.0, 100.0], [4.0, 100.0, 100.0]])
    over = Masked(torch.tensor([[1, 1, 0], [1, 0, 0]]))
    values = np.array([1.0, 2.0, 4.0])
    assert over.mean(x).item() == pytest.approx(values.mean())
    assert over.var(x).item() == pytest.approx(values.var(ddof=1))


def test_one_entry_has_no_variance():
    assert Masked(torch.tensor([1, 0])).var(torch.tensor([1.0, 2.0])).isnan()


def test_masked_whiten_against_numpy():
    x = torch.tensor([[1.0, 2.0, 50.0], [4.0, -50.0, 7.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 1]])
    values = np.array([1.0, 2.0, 4.0, 7.0])
    expected = (x.numpy() - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(Masked(mask).whiten(x).numpy(), expected, rtol=1e-5)
    shifted = Masked(mask).whiten(x, shift_mean=False)
    np.testing.assert_allclose(shifted.numpy(), expected + values.mean(), rtol=1e-5)


def test_flatten_dict():
    assert flatten_dict({"a": {"b": 1, "c": {}}, "d": 2}) == {"a/b": 1, "d": 2}
    with pytest.raises(ValueError, match="separator"):
        flatten_dict({"a/b": 1})


def test_stack_dicts_pads_with_minus_one():
    stacked = stack_dicts([{"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([3.0])}])
    assert stacked["x"].tolist() == [[1.0, 2.0], [3.0, -1.0]]


def test_to_host_gives_floats_and_arrays():
    host = to_host(
        {"a": torch.tensor(1.5), "b": torch.tensor([1.0, 2.0], dtype=torch.bfloat16), "c": 3.0}
        | {"d": np.float64(2.5), "e": torch.tensor([4.0])}
    )
    assert type(host["a"]) is float
    assert host["b"].dtype == np.float32
    assert (host["a"], host["b"].tolist(), host["c"], host["d"]) == (1.5, [1.0, 2.0], 3.0, 2.5)
    assert host["e"] == 4.0


def test_check_finite_looks_only_where_the_mask_counts():
    mask = torch.tensor([[1, 0], [1, 1]])
    fine = torch.tensor([[0.0, float("nan")], [0.0, 0.0]])
    check_finite(mask, value=fine)
    broken = torch.tensor([[0.0, 0.0], [0.0, float("inf")]])
    with pytest.raises(FloatingPointError, match="row 1: a reference"):
        check_finite(mask, value=fine, reference=broken)
