"""Group statistics against plain arithmetic over each group, with scores missing here and there."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from fastrl.ops import group_advantages, leave_one_out

NAN = math.nan


def scored(values):
    return [v for v in values if not math.isnan(v)]


def spread(values):
    found = scored(values)
    return statistics.stdev(found) if len(found) > 1 else NAN


def zero_if_nan(value):
    return 0.0 if math.isnan(value) else value


def by_hand(rows, size, scale):
    flat = []
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        found = scored(group)
        mean = statistics.fmean(found) if found else NAN
        divisor = {"group": spread(group), "batch": spread(rows), "none": NAN}[scale] + 1e-4
        flat += [(r - mean) / (1 if scale == "none" else divisor) for r in group]
    return [zero_if_nan(a) for a in flat]


CASES = [
    [1.0, 2.0, 4.0, 8.0, -3.0, 0.5],
    [1.0, NAN, 4.0, NAN, NAN, 0.5],
    [NAN, NAN, NAN, 8.0, -3.0, 0.5],
    [0.1, 0.1, 0.1, 0.7, 0.7, 0.7],
    [NAN] * 6,
]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("rows", CASES, ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_advantages_are_the_arithmetic(rows, size, scale):
    got, std = group_advantages(torch.tensor(rows), size, scale)
    want = torch.tensor(by_hand(rows, size, scale))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=2e-4, atol=1e-5)
    of = (lambda i: rows) if scale == "batch" else (lambda i: rows[i // size * size :][:size])
    expected = torch.tensor([spread(of(i)) for i in range(6)])
    torch.testing.assert_close(std, expected, equal_nan=True, rtol=1e-4, atol=1e-6)


def test_equal_scores_have_no_advantage_at_all():
    got, std = group_advantages(torch.full((7,), 0.1), 7)
    assert got.tolist() == std.tolist() == [0.0] * 7


def test_rows_of_a_group_may_lie_anywhere():
    scores = torch.randn(12, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([70, 70, 70, 70, -2, -2, -2, -2, 5, 5, 5, 5])
    for scale in ("group", "batch", "none"):
        for want, got in zip(
            group_advantages(scores, 4, scale),
            group_advantages(scores[order], ids[order], scale),
            strict=True,
        ):
            torch.testing.assert_close(got, want[order])
    torch.testing.assert_close(
        leave_one_out(scores[order], ids[order]), leave_one_out(scores, 4)[order]
    )


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("rows", CASES, ids=str)
def test_leave_one_out_is_the_arithmetic(rows, normalize):
    want = []
    for start in range(0, 6, 3):
        group = rows[start : start + 3]
        for i, r in enumerate(group):
            others = scored(group[:i] + group[i + 1 :])
            want.append(r - statistics.fmean(others) if others else NAN)
    if normalize:
        mean = statistics.fmean(scored(want)) if scored(want) else NAN
        want = [(a - mean) / (spread(want) + 1e-4) for a in want]
    want = torch.tensor([zero_if_nan(a) for a in want])
    torch.testing.assert_close(
        leave_one_out(torch.tensor(rows), 3, normalize), want, rtol=2e-4, atol=1e-5
    )


def test_what_is_refused():
    scores = torch.zeros(6)
    for call, message in [
        (lambda: group_advantages(scores, 4), "group=4 does not divide the 6 scores"),
        (lambda: group_advantages(scores, 3, "std"), "scale must be one of group, batch, none"),
        (lambda: group_advantages(torch.zeros(2, 3), 3), r"scores must be \(B,\)"),
        (lambda: group_advantages(torch.tensor([0.0, math.inf]), 2), r"scores\[1\] is inf"),
        (lambda: leave_one_out(scores, torch.zeros(5).long()), "group must be a whole number or"),
        (lambda: leave_one_out(scores, 0), "group"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="scores"):
        group_advantages(torch.zeros(4).long(), 2)
