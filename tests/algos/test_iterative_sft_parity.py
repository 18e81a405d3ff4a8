"""`IterativeSFTTrainer`: runs of TRL 0.7.11 repeated, and two ranks beside one."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch

from fastrl.algos.iterative_sft import IterativeSFTTrainer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from iterative_parity.cases import CASES, run_case  # noqa: E402
from iterative_two_ranks import worker  # noqa: E402

from tests import two_ranks  # noqa: E402

RECORDED = json.loads((HERE.parent / "fixtures" / "iterative_sft.json").read_text())["cases"]
FASTRL = types.SimpleNamespace(IterativeSFTTrainer=IterativeSFTTrainer)
pytestmark = pytest.mark.filterwarnings("ignore:IterativeSFTTrainer, old spellings")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_iterative_sft_trainer_step_has_trls_losses(case, capsys):
    found, recorded = run_case(case, FASTRL), RECORDED[case.name]
    assert len(found["losses"]) == 12
    assert found["losses"] == pytest.approx(recorded["losses"], abs=1e-5)
    assert found["draw"] == recorded["draw"], "the shuffles drew as TRL's did"
    for line, theirs in zip(found["log"], recorded["log"], strict=True):
        assert line == pytest.approx(theirs, abs=1e-4)


@pytest.mark.slow
def test_two_ranks_learn_as_one_and_stop_together(tmp_path):
    first, second = two_ranks.run(HERE / "iterative_two_ranks" / "worker.py", tmp_path, timeout=200)
    alone = worker.train(tmp_path, 0, 1)
    for name, weight in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(first["weights"][name], weight, rtol=2e-6, atol=2e-6, msg=name)
    assert first["logs"] == pytest.approx(alone["logs"], rel=1e-5)
    for rank in (first, second):
        assert (
            rank["uneven"] == "ValueError: step() got [1, 2] rows on the ranks: give each as many"
        )
    assert "holds 64, outside" in second["one_bad"]
    assert "failed on rank 1" in first["one_bad"]
