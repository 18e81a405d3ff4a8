"""Ten steps of ORPO and CPO log what TRL 1.16 logs.

The numbers of TRL were recorded by `pairs_parity/record.py`. Mean logits are compared over the
answers' tokens, which is where fastrl takes them.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastrl.algos.cpo import CPOConfig, CPOTrainer
from fastrl.algos.orpo import ORPOConfig, ORPOTrainer
from tests.algos.offline_parity import running
from tests.algos.pairs_parity import cases
from tests.algos.test_offline_parity import compare

RECORDED = Path(__file__).parent / "pairs_parity" / "recorded"
LIBRARY = SimpleNamespace(
    ORPOConfig=ORPOConfig, ORPOTrainer=ORPOTrainer, CPOConfig=CPOConfig, CPOTrainer=CPOTrainer
)
OURS = {"num_tokens", "eval_num_tokens", "aux_loss"}  # what TRL does not log


@pytest.fixture(autouse=True)
def uncollected(monkeypatch):
    """A trainer that begins to train does not collect the process's garbage: most of a second."""
    monkeypatch.setattr("accelerate.utils.memory.gc", SimpleNamespace(collect=lambda: None))


@pytest.mark.parametrize("case", cases.ALL, ids=lambda case: case.name)
def test_logs_what_trl_logs(case):
    recorded = json.loads((RECORDED / f"{case.name}.json").read_text())["logs"]
    logs = running.run(case, LIBRARY)
    keys = {key for entry in logs for key in entry}
    assert keys - OURS == set(recorded)
    for key, want in recorded.items():
        compare(key, [entry[key] for entry in logs if key in entry], want, case.steepness)
