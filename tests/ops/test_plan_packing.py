"""plan_packing: order recorded from TRL 1.16, laws of every plan, and the edges."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastrl import ops

RECORDED = Path(__file__).parents[1] / "fixtures" / "packing" / "trl_1_16.json"


def recorded_lengths(case):
    if "lengths" in case:
        return case["lengths"]
    span = min(case["capacity"], case["spread"])
    return [(i * 7919 + (i * i) % 1009) % span + 1 for i in range(case["rows"])]


@pytest.mark.parametrize("case", json.loads(RECORDED.read_text())["cases"])
def test_order_is_trls(backend, case):
    plan = ops.plan_packing(recorded_lengths(case), case["capacity"])
    if "order" in case:
        assert plan.order.tolist() == case["order"]
        assert plan.offsets.tolist() == case["offsets"]
        return
    assert len(plan) == case["bins"]
    numbers = np.concatenate([plan.order, plan.offsets]).astype("<i8")
    assert hashlib.sha256(numbers.tobytes()).hexdigest() == case["sha256"]


@pytest.mark.slow
def test_order_is_that_of_an_installed_trl():
    data_utils = pytest.importorskip("trl.data_utils")
    if not hasattr(data_utils, "_pack_bfd"):
        pytest.skip("this trl has no best-fit decreasing packing")
    import pyarrow as pa

    lengths = np.random.default_rng(0).integers(1, 400, 20_000)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    rows = pa.array(np.repeat(np.arange(len(lengths), dtype=np.int32), lengths))
    packed = data_utils._pack_bfd(
        pa.table({"row": pa.ListArray.from_arrays(starts, rows)}), 512
    ).to_pydict()
    theirs = [list(dict.fromkeys(row)) for row in packed["row"]]
    assert [rows.tolist() for rows in ops.plan_packing(lengths, 512)] == theirs


def test_by_hand(backend):
    # Capacity 10, longest first: 7 -> bin 0 (3 left). 6 -> bin 1 (4 left). 4 -> bin 1, the least
    # space that holds it (0 left). 3 -> bin 0 (0 left). 3 -> bin 2 (7 left). 2 -> bin 2.
    plan = ops.plan_packing([3, 7, 4, 3, 6, 2], 10)
    assert [rows.tolist() for rows in plan] == [[1, 0], [4, 2], [3, 5]]
    assert len(plan) == 3
    assert plan[2].tolist() == plan[-1].tolist() == [3, 5]
    with pytest.raises(IndexError, match="bin 3"):
        plan[3]


def test_equal_spaces_are_served_first_come_first_served(backend):
    # Bins 0, 1, 2 of 6 have 4 left each; the 3s go to 0, 1, 2 in that order, then the 1s likewise.
    plan = ops.plan_packing([6, 6, 6, 3, 3, 3, 1, 1, 1], 10)
    assert [rows.tolist() for rows in plan] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


@pytest.mark.parametrize("capacity", [500, 1 << 20, (1 << 20) + 1, 1 << 40])
def test_every_row_once_and_no_bin_over_capacity(backend, capacity):
    lengths = np.random.default_rng(3).integers(0, 500, 3000)
    lengths[:3] = min(capacity, 10**9)
    plan = ops.plan_packing(lengths, capacity)
    assert sorted(plan.order.tolist()) == np.flatnonzero(lengths).tolist()
    assert plan.offsets[0] == 0
    assert plan.offsets[-1] == len(plan.order)
    sums = [int(lengths[rows].sum()) for rows in plan]
    assert max(sums) <= capacity
    # Best fit opens a bin only for what no open bin holds: no two bins could have been one.
    assert sum(s * 2 <= capacity for s in sums) <= 1


def test_huge_lengths_agree_with_the_reference():
    lengths = np.random.default_rng(4).integers(1, 1 << 40, 2000)
    fast = ops.plan_packing(lengths, 1 << 41)
    with ops.use_backend("reference"):
        slow = ops.plan_packing(lengths, 1 << 41)
    assert np.array_equal(fast.order, slow.order)
    assert np.array_equal(fast.offsets, slow.offsets)


@pytest.mark.parametrize("seed", range(20))
def test_small_cases_agree_with_the_reference(seed):
    generator = np.random.default_rng(seed)
    capacity = int(generator.integers(1, 200))
    lengths = generator.integers(0, capacity + 1, int(generator.integers(1, 400)))
    fast = ops.plan_packing(lengths, capacity)
    with ops.use_backend("reference"):
        slow = ops.plan_packing(lengths, capacity)
    assert np.array_equal(fast.order, slow.order)
    assert np.array_equal(fast.offsets, slow.offsets)


@pytest.mark.parametrize("lengths", [[], [0, 0], np.zeros(0), torch.zeros(0, dtype=torch.int64)])
def test_nothing_to_pack(backend, lengths):
    plan = ops.plan_packing(lengths, 8)
    assert len(plan) == 0
    assert list(plan) == []
    assert plan.order.tolist() == []
    assert plan.offsets.tolist() == [0]


def test_kinds_of_sequence(backend):
    lengths = [3, 7, 4, 3, 6, 2]
    expected = ops.plan_packing(lengths, 10).order.tolist()
    wide = np.array([[n, 99] for n in lengths])
    for other in (
        tuple(lengths),
        np.array(lengths, dtype=np.uint8),
        wide[:, 0],
        torch.tensor(lengths, dtype=torch.int32),
    ):
        assert ops.plan_packing(other, np.int64(10)).order.tolist() == expected


@pytest.mark.parametrize(
    "lengths, capacity, strategy, error, words",
    [
        ([3, 11, 2], 10, "bfd", ValueError, r"lengths\[1\] is 11, over capacity 10; truncate"),
        ([3, -1], 10, "bfd", ValueError, r"lengths\[1\] is -1, negative"),
        ([3], 0, "bfd", ValueError, "capacity must be at least 1, not 0"),
        ([3], 10.5, "bfd", TypeError, "capacity must be a whole number"),
        ([3.5], 10, "bfd", TypeError, "lengths must be integers, not float64"),
        ([[3]], 10, "bfd", ValueError, "one-dimensional"),
        ([3], 10, "ffd", ValueError, "strategy must be one of bfd, not 'ffd'"),
    ],
)
def test_bad_input_is_named(lengths, capacity, strategy, error, words):
    with pytest.raises(error, match=words):
        ops.plan_packing(lengths, capacity, strategy)
