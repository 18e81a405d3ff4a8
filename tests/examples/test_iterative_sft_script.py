"""examples/scripts/iterative_sft.py: flags, and a smoke run that learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Few rounds of a model that hardly knows its sentences: large steps.
LEARNING = ["--learning_rate", "3e-3", "--mini_batch_size", "8", "--n_best_of", "8"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "scripts"))
    import iterative_sft

    return iterative_sft


@pytest.mark.parametrize(
    "line", ["", "--smoke --rounds 0", "--dataset there --n_best_off 2", "--smoke --batch_size x"]
)
def test_flags_that_are_refused(script, line):
    with pytest.raises(SystemExit):
        script.parse(line.split())


def test_flags(script):
    options = script.parse(["--dataset", "there", "--n-best-of", "8", "--args.rounds", "3"])
    assert (options.dataset, options.n_best_of, options.rounds) == ("there", 8, 3)
    assert script.parse(["--smoke"]).rounds == 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no v_head weight")
def test_answers_get_better(script, tmp_path):
    found = script.main(["--smoke", "--output_dir", str(tmp_path), *LEARNING])
    assert found["after"]["reward (logit)"] > found["before"]["reward (logit)"] + 0.1
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == list(range(6))
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert "| after |" in (tmp_path / "report.md").read_text()
