"""Ten steps of BCO and of PRM log what TRL 0.28 logs, which `bco_prm_parity/record.py` recorded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastrl.algos.bco import BCOTrainer
from fastrl.algos.bco_config import BCOConfig
from fastrl.algos.prm import PRMTrainer
from fastrl.algos.prm_config import PRMConfig
from tests.algos.bco_prm_parity import cases, running
from tests.algos.bco_prm_parity.regression import stand_in

RECORDED = Path(__file__).parent / "bco_prm_parity" / "recorded"
LIBRARY = SimpleNamespace(
    BCOTrainer=BCOTrainer, BCOConfig=BCOConfig, PRMTrainer=PRMTrainer, PRMConfig=PRMConfig
)
# Absolute beside relative: rewards are differences of sums of log-probabilities of some -100.
CLOSE = {"rel_tol": 1e-4, "abs_tol": 2e-5}
# TRL's is the sum of all logits, those of prompts and of padding too, over the number of rows.
OTHERWISE = {f"{mode}logits/{side}" for mode in ("", "eval_") for side in ("chosen", "rejected")}
MORE = {"num_tokens", "eval_num_tokens", "aux_loss", "accuracy"}


def compare(logs: list[dict[str, float]], name: str) -> None:
    recorded = json.loads((RECORDED / f"{name}.json").read_text())["logs"]
    keys = {key for entry in logs for key in entry}
    assert keys - MORE == set(recorded)
    for key, want in recorded.items():
        got = [entry[key] for entry in logs if key in entry]
        assert len(got) == len(want), key
        for step, (ours, theirs) in enumerate(zip(got, want, strict=True), 1):
            same = key in OTHERWISE or math.isclose(ours, theirs, **CLOSE)
            assert same, f"{key} of log {step}: {ours} against TRL's {theirs}"


@pytest.mark.parametrize("case", cases.ALL, ids=lambda case: case.name)
def test_logs_what_trl_logs(case, monkeypatch):
    stand_in(monkeypatch)
    compare(running.run(case, LIBRARY), case.name)
