"""Two ranks of four rows train as one process of eight; a NaN on one rank stops both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.algos.offline_parity import making
from tests.algos.offline_two_ranks import worker
from tests.two_ranks import run

pytestmark = pytest.mark.slow


def two_ranks(task: str, kind: str, folder: Path) -> list[dict]:
    return run(worker.__file__, folder, task, kind)


@pytest.mark.parametrize("kind", ["sft", "dpo", "cpo", "reward", "gkd"])
def test_two_ranks_of_four_are_one_of_eight(tmp_path, kind):
    (tmp_path / "two").mkdir()
    first, second = two_ranks("train", kind, tmp_path / "two")
    alone = worker.train(1, kind, tmp_path, [])
    for name, weight in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(first["weights"][name], weight, rtol=2e-6, atol=2e-6, msg=name)
    for one, two in zip(alone["logs"], first["logs"], strict=True):
        timed = ("runtime", "per_second", "flos")
        keys = [key for key in one if not any(part in key for part in timed)]
        assert {key: two[key] for key in keys} == pytest.approx(
            {key: one[key] for key in keys}, rel=1e-4, abs=2e-6
        )


def test_two_ranks_of_gkd_learn_what_their_student_says(tmp_path):
    first, second = two_ranks("train", "gkd_drawn", tmp_path)
    start = making.model("qwen2").state_dict()
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
    assert any(not torch.equal(first["weights"][name], start[name]) for name in start)
    losses = [entry["loss"] for entry in first["logs"] if "loss" in entry]
    assert len(losses) == 4 and all(0 < loss < 10 for loss in losses)


def test_a_nan_on_one_rank_stops_both(tmp_path):
    first, second = two_ranks("nan", "sft", tmp_path)
    for rank in (first, second):
        assert "optimizer step 3: not finite" in rank["raised"]
