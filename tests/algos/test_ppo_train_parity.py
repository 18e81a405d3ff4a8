"""Five batches of PPO's `train()` form log what TRL logged on the same scripted responses.

The numbers of TRL were recorded by `ppo_train_parity/record.py`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import SequentialSampler

import fastrl
from tests import two_ranks
from tests.algos.ppo_train_parity import cases, running, worker

RECORDED = Path(__file__).parent / "ppo_train_parity" / "recorded"

RELATIVE = 1e-4
ABSOLUTE = 2e-6  # for means that cancel: their size says nothing of the size of their terms
KL = 2e-5  # a difference of two sums of log-probabilities of some -30
CANCELLING = ("objective/kl", "objective/non_score_reward", "objective/rlhf_reward")


def in_order(trainer: Any) -> None:
    """Prompts come as they were recorded."""
    trainer._get_train_sampler = lambda dataset=None: SequentialSampler(trainer.train_dataset)


def judge(found: dict[str, Any], recorded: dict[str, Any], uncompared: tuple[str, ...]) -> None:
    assert found["order"] == recorded["order"]
    assert len(found["logs"]) == running.BATCHES
    for batch, (got, want) in enumerate(zip(found["logs"], recorded["logs"], strict=True), 1):
        assert got.keys() == want.keys()
        for key in want.keys() - set(uncompared):
            slack = KL if key in CANCELLING else ABSOLUTE
            near = math.isclose(got[key], want[key], rel_tol=RELATIVE, abs_tol=slack)
            assert near, f"{key} of batch {batch}: {got[key]} against TRL's {want[key]}"
    for role, want in recorded["ends"].items():
        for name, value in want.items():
            assert found["ends"][role][name] == pytest.approx(value, rel=1e-3), f"{role} {name}"


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_logs_and_learns_what_trl_does(case: cases.Case) -> None:
    recorded = json.loads((RECORDED / f"{case.name}.json").read_text())
    judge(running.run(case, fastrl, recorded["order"], in_order), recorded, case.uncompared)


@pytest.mark.slow
def test_two_ranks_log_and_learn_what_trl_does(tmp_path: Path) -> None:
    recorded = [json.loads((RECORDED / f"two_ranks.rank{r}.json").read_text()) for r in range(2)]
    torch.save([rank["order"] for rank in recorded], tmp_path / "orders.pt")
    first, second = two_ranks.run(worker.__file__, tmp_path)
    judge(first, recorded[0], ())
    assert second["order"] == recorded[1]["order"]
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
