"""Every number that an operation takes is checked, and named when it is none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fastrl import ops

X = torch.zeros(2, 3)
ONES = torch.ones(2, 3)
IDS = torch.zeros(2, dtype=torch.int64)
SEEDS = torch.arange(2)

# The number's name -> an operation called with it, and a value that it takes.
REAL: dict[str, tuple[Callable[[Any], Any], float]] = {
    "gamma": (lambda v: ops.gae(X, X, ONES, v, 1.0), 0.9),
    "lam": (lambda v: ops.gae(X, X, ONES, 1.0, v), 0.9),
    "kl_coef": (lambda v: ops.shaped_rewards(X[:, 0], X, X, ONES, v), 0.1),
    "temperature": (lambda v: ops.token_logprobs(X, IDS, v), 0.7),
    "softcap": (lambda v: ops.linear_token_logprobs(X, X, IDS, softcap=v), 30.0),
    "scale": (lambda v: ops.linear_nll(X, X, IDS, X[:, 0], scale=v), 2.0),
    "penalty": (lambda v: ops.penalise(X, IDS[:, None], v), 1.2),
    "top_p": (lambda v: ops.sample(X, SEEDS, 0, top_p=v), 0.9),
    "min_p": (lambda v: ops.sample(X, SEEDS, 0, min_p=v), 0.1),
}
WHOLE: dict[str, tuple[Callable[[Any], Any], int]] = {
    "top_k": (lambda v: ops.sample(X, SEEDS, 0, top_k=v), 2),
    "step": (lambda v: ops.sample(X, SEEDS, v), 5),
    "vocabulary": (lambda v: ops.gumbel_noise(SEEDS, 0, v), 7),
    "capacity": (lambda v: ops.plan_packing([1, 2], v), 4),
    "num_bytes": (ops.set_logits_budget, 1 << 20),
}


@pytest.fixture(autouse=True)
def default_budget():
    yield
    ops.set_logits_budget(None)


@pytest.mark.parametrize("name", REAL)
def test_real_numbers(backend, name):
    call, good = REAL[name]
    for value in (good, np.float32(good), torch.tensor(good)):
        call(value)
    for value in ("0.5", [1.0], 1j):
        with pytest.raises(TypeError, match=f"{name} must be a number, not {type(value).__name__}"):
            call(value)
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=name):
            call(value)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(backend, name):
    call, good = WHOLE[name]
    for value in (good, np.int64(good)):
        call(value)
    for value in (2.0, "2", True, [2]):
        with pytest.raises(TypeError, match=f"{name} must be a whole number"):
            call(value)


def test_numbers_beyond_64_bits(backend):
    logits = torch.arange(36.0).reshape(4, 9)
    unlimited, limited = (ops.sample(logits, torch.arange(4), 3, top_k=k) for k in (0, 2**70))
    assert all(map(torch.equal, unlimited, limited))
    assert len(ops.plan_packing([1, 2], 2**70)) == 1
    with pytest.raises(ValueError, match=r"step must be below 2\*\*63"):
        ops.sample(X, SEEDS, 2**63)
    with pytest.raises(ValueError, match=r"step must be at least -9223372036854775808"):
        ops.sample(X, SEEDS, -(2**63) - 1)


def test_one_statistic_by_its_bare_name_is_refused(backend):
    with pytest.raises(TypeError, match=r"pass \('top1',\)"):
        ops.linear_token_logprobs(X, X, IDS, stats="top1")


def test_complex_scores_are_refused(backend):
    with pytest.raises(TypeError, match="scores must be real"):
        ops.shaped_rewards(torch.zeros(2, dtype=torch.complex64), X, X, ONES, 0.1)


@pytest.mark.parametrize(
    "lengths", ["12", None, 5, pytest.param((n for n in [1, 2]), id="generator")], ids=str
)
def test_lengths_that_are_no_list(lengths):
    with pytest.raises(ValueError, match=f"not a {type(lengths).__name__}; give a list"):
        ops.plan_packing(lengths, 4)
