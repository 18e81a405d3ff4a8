"""Thirty steps of each offline trainer log what TRL 1.16 logs.

The numbers of TRL were recorded by `offline_parity/record.py`. With FASTRL_TRL116_PYTHON naming a
python that has TRL 1.16, they are recorded anew and compared.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import fastrl
from tests.algos.offline_parity import cases, running

RECORDED = Path(__file__).parent / "offline_parity" / "recorded"

# Relative to the size of what TRL logs. TRL itself moves by 4e-7 from thread to thread.
LOSS = 1e-5
METRICS = 1e-4
# Absolute, for means that cancel: their size says nothing of the size of their terms. Rewards, KL:
# differences of two sums of log-probabilities of some -100, known to 1e-7 of that.
ABSOLUTE = 2e-6
REWARDS = 2e-5


def compare(key: str, got: list[float], want: list[float], steepness: float) -> None:
    assert len(got) == len(want), f"{key}: logged {len(got)} times, TRL {len(want)} times"
    tolerance = steepness * LOSS if key in ("loss", "grad_norm", "eval_loss") else METRICS
    absolute = REWARDS if "rewards/" in key or key in ("kl", "eval_kl") else ABSOLUTE
    for step, (ours, theirs) in enumerate(zip(got, want, strict=True), 1):
        assert math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=absolute), (
            f"{key} at step {step}: {ours} against TRL's {theirs}"
        )


@pytest.mark.parametrize("case", cases.ALL, ids=lambda case: case.name)
def test_logs_what_trl_logs(case):
    recorded = json.loads((RECORDED / f"{case.name}.json").read_text())["logs"]
    logs = running.run(case, fastrl)
    keys = {key for entry in logs for key in entry}
    assert keys == set(recorded)
    for key, want in recorded.items():
        compare(key, [entry[key] for entry in logs if key in entry], want, case.steepness)
