"""Two ranks that draw and learn are one process with all the rows."""

from __future__ import annotations

import pytest
import torch

from tests import two_ranks
from tests.train.online_two_ranks import worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What either rank found, by kind."""
    folder = tmp_path_factory.mktemp("two")
    return two_ranks.run(worker.__file__, folder, timeout=600)


def same(one, two):
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=1e-5, atol=2e-6, msg=name)
    for a, b in zip(one["logs"], two["logs"], strict=True):
        timed = ("runtime", "per_second", "flos", "time")
        keys = [key for key in a if not any(part in key for part in timed)]
        assert {key: b[key] for key in keys} == pytest.approx(
            {key: a[key] for key in keys}, rel=1e-4, abs=2e-6
        )


@pytest.mark.parametrize(
    "kind", ["grpo", "dapo", "dr_grpo", "iterations", "quantile", "rloo", "lively"]
)
def test_two_ranks_are_one(tmp_path, ranks, kind):
    first, second = (found[kind] for found in ranks)
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
    same(worker.train(kind, 1, tmp_path), first)


def test_balanced_ranks_take_the_same_steps_with_like_work(ranks):
    left, right = (found["balanced"] for found in ranks)
    plain, other = (found["unbalanced"] for found in ranks)
    same(plain, left)
    apart = [
        sum(abs(a - b) for a, b in zip(one["work"], two["work"], strict=True))
        for one, two in ((left, right), (plain, other))
    ]
    assert apart[0] < apart[1]
