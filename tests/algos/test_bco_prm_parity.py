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
from tests.algos.bco_prm_parity.regression import installed, regression

RECORDED = Path(__file__).parent / "bco_prm_parity" / "recorded"
LIBRARY = SimpleNamespace(
    BCOTrainer=BCOTrainer, BCOConfig=BCOConfig, PRMTrainer=PRMTrainer, PRMConfig=PRMConfig
)
# Absolute beside relative: rewards are differences of sums of log-probabilities of some -100.
RELATIVE, ABSOLUTE = 1e-4, 2e-5
# TRL's is the sum of all logits, those of prompts and of padding too, over the number of rows.
OTHERWISE = {f"{mode}logits/{side}" for mode in ("", "eval_") for side in ("chosen", "rejected")}
MORE = {"num_tokens", "eval_num_tokens", "aux_loss", "accuracy"}


def compare(logs: list[dict[str, float]], name: str, steepness: float) -> None:
    recorded = json.loads((RECORDED / f"{name}.json").read_text())["logs"]
    keys = {key for entry in logs for key in entry}
    assert keys - MORE == set(recorded)
    for key, want in recorded.items():
        got = [entry[key] for entry in logs if key in entry]
        assert len(got) == len(want), key
        for step, (ours, theirs) in enumerate(zip(got, want, strict=True), 1):
            close = math.isclose(ours, theirs, rel_tol=steepness * RELATIVE, abs_tol=ABSOLUTE)
            assert key in OTHERWISE or close, f"{key} of log {step}: {ours} against TRL's {theirs}"


QUICK = {
    *("bco_unpaired", "bco_chat", "bco_evaluated", "bco_truncated", "bco_bos", "bco_matched"),
    *("prm_steps", "prm_last_step", "prm_truncated", "prm_evaluated", "prm_lora"),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[] if c.name in QUICK else pytest.mark.slow) for c in cases.ALL],
    ids=[case.name for case in cases.ALL],
)
def test_logs_what_trl_logs(case):
    # scikit-learn, of which TRL's numbers are, stops where its gradient is below 1e-4.
    steepness = 5.0 if case.matched and not installed() else 1.0
    with regression():
        compare(running.run(case, LIBRARY), case.name, steepness)
