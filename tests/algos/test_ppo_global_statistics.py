"""Two ranks of 16 rows equal one of 32 (`global_statistics`); a bad row on one stops both."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import two_ranks

WORKER = Path(__file__).parent / "two_ranks" / "worker.py"

pytestmark = pytest.mark.slow


def run_two_ranks(task, folder):
    said = two_ranks.start(WORKER, task, folder)
    return two_ranks.results([folder / f"{task}.{rank}.pt" for rank in range(2)], said)


def test_two_ranks_of_16_equal_one_of_32(tmp_path):
    first, second = run_two_ranks("global_statistics", tmp_path)
    spec = importlib.util.spec_from_file_location("worker", WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    alone = worker.global_statistics(rank=0, world=1)
    for one, two in zip(alone["stats"], first["stats"], strict=True):
        for key, value in one.items():
            if key.startswith(("time/", "tokens/")):  # lengths are each rank's own, as in TRL
                continue
            np.testing.assert_allclose(two[key], value, rtol=1e-4, atol=1e-6, err_msg=key)
    torch.manual_seed(0)
    start = worker.make_trainer(32).model.state_dict()
    for key, value in alone["weights"].items():
        assert torch.equal(first["weights"][key], second["weights"][key]), key
        moved = (value - start[key]).norm()
        assert (first["weights"][key] - value).norm() <= 1e-3 * moved + 1e-7, key


def test_a_bad_row_on_one_rank_stops_both(tmp_path):
    first, second = run_two_ranks("bad_row", tmp_path)
    assert first["raised"].startswith("RuntimeError: the check of queries")
    assert "failed on rank 1" in first["raised"]
    assert second["raised"].startswith("ValueError: scores[3] is nan")
    assert first["same"]
    assert second["same"]
