"""Masked means and variances, stacking and the way to the host."""

import numpy as np
import pytest
import torch

from fastrl.train import device_cache
from fastrl.train.device_cache import PPODecorators
from fastrl.train.statistics import (
    WANDB_PADDING,
    Masked,
    add_suffix,
    average_torch_dicts,
    check_finite,
    convert_to_scalar,
    flatten_dict,
    stack_dicts,
    stats_to_np,
    to_host,
)


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


def test_stats_to_np_keeps_dtypes_numpy_has():
    host = stats_to_np(
        {"half": torch.tensor([1.5], dtype=torch.bfloat16), "whole": torch.tensor([[3]])}
        | {"scalar": np.float32(2.5), "int": 4, "flag": True, "text": "x", "one": torch.tensor(7)}
    )
    assert (host["half"].dtype, host["half"].tolist()) == (np.float32, [1.5])
    assert (host["whole"].dtype, host["whole"].tolist()) == (np.int64, [[3]])
    for name, value in (("scalar", 2.5), ("int", 4.0), ("flag", 1.0)):
        assert type(host[name]) is float and host[name] == value
    assert host["text"] == "x"
    assert host["one"].shape == () and host["one"] == 7


def test_convert_to_scalar_takes_single_numbers_only():
    stats = {"a": torch.tensor([2.0]), "b": np.array(3), "c": np.ones(2), "d": torch.ones(1, 1)}
    found = convert_to_scalar(stats | {"e": "text"})
    assert (type(found["a"]), found["a"], type(found["b"]), found["b"]) == (float, 2.0, int, 3)
    assert found["c"] is stats["c"] and found["d"] is stats["d"] and found["e"] == "text"


def test_averages_and_suffixes_of_dicts():
    rows = [{"x": torch.tensor([1.0, 4.0])}, {"x": torch.tensor([3.0, 0.0])}]
    assert average_torch_dicts(rows)["x"].tolist() == [2.0, 2.0]
    assert add_suffix({"a": 1, "b": 2}, "_dist") == {"a_dist": 1, "b_dist": 2}
    assert (
        stack_dicts([{"x": torch.ones(2)}, {"x": torch.ones(1)}])["x"][1, 1] == WANDB_PADDING == -1
    )


@pytest.mark.parametrize("era", ["device", "cuda"])
def test_ppo_decorators_empty_the_cache_while_asked_to(monkeypatch, era):
    emptied = []
    monkeypatch.setattr(device_cache, "empty_device_cache", lambda: emptied.append(len(calls)))
    calls = []

    @getattr(PPODecorators, f"empty_{era}_cache")()
    def work(number, *, double=False):
        calls.append(number)
        return number * (2 if double else 1)

    assert work(3, double=True) == 6
    assert emptied == []
    flag = f"optimize_{era}_cache"
    setattr(PPODecorators, flag, True)
    try:
        assert PPODecorators.optimize_device_cache is True
        assert work(4) == work(4) == 4
    finally:
        setattr(PPODecorators, flag, False)
    assert emptied == [2, 3]
    assert not PPODecorators.optimize_device_cache
