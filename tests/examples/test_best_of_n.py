"""examples/scripts/best_of_n.py and the notebook: flags, a smoke run, the hub's models."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.examples.local_hub import CLASSIFIER, notebook

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "scripts"))
    import best_of_n

    return best_of_n


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", {"model_name": "lvwerra/gpt2-imdb-pos-v2", "ref_model_name": "lvwerra/gpt2-imdb"}),
        ("--n_best_of 8 --seed 3", {"n_best_of": 8, "seed": 3, "num_queries": 64}),
        ("--args.n-best-of 8 --args.model_name gpt2", {"n_best_of": 8, "model_name": "gpt2"}),
        ("--dataset there", {"dataset": "there", "model_name": None}),
        ("--smoke --n_best_of=2", {"num_queries": 8, "n_best_of": 2, "model_name": None}),
    ],
)
def test_flags(script, line, expected):
    options = script.parse(line.split())
    assert {name: getattr(options, name) for name in expected} == expected


@pytest.mark.parametrize("line", ["--n_best_off 2", "--n_best_of 0", "--n_best_of many"])
def test_flags_that_are_refused(script, capsys, line):
    with pytest.raises(SystemExit):
        script.parse(line.split())
    assert "n_best_of" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no v_head weight")
def test_more_answers_score_higher(script, tmp_path):
    rows = script.main(["--smoke", "--n_best_of", "8", "--output_dir", str(tmp_path)])
    assert list(rows) == ["reference", "best of 2", "best of 4", "best of 8"]
    rewards = [row["reward (logit)"] for row in rows.values()]
    assert rewards == sorted(rewards) and rewards[-1] > rewards[0] + 0.05
    kls = [row["KL (nats)"] for row in rows.values()]
    assert kls == pytest.approx(
        [0.0, math.log(2) - 1 / 2, math.log(4) - 3 / 4, math.log(8) - 7 / 8]
    )
    assert json.loads((tmp_path / "summary.json").read_text()) == rows
    assert "| best of 8 |" in (tmp_path / "report.md").read_text()


def logits_of_positive(texts):
    """By a classifier read from its folder, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(CLASSIFIER).eval()
    tokenizer = AutoTokenizer.from_pretrained(CLASSIFIER)
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).logits[0, 1].item() for text in texts]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no v_head weight")
def test_the_models_of_a_hub(script, local_hub_directory, tmp_path):
    given = ["--query_dataset", "imdb", "--num_queries", "4", "--output_dir", str(tmp_path)]
    rows = script.main(given)
    assert list(rows) == ["reference", "best of 2", "best of 4", "tuned"]
    assert rows["best of 4"]["reward (logit)"] > rows["reference"]["reward (logit)"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no v_head weight")
def test_notebook_best_of_n_runs_as_shipped(local_hub_directory, monkeypatch):
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    found = notebook.run(ROOT / "examples" / "notebooks" / "best_of_n.ipynb")
    table = found["df_results"]
    assert len(table) == found["bs"] == 16
    for name in ("ref", "RLHF", "best_of"):
        expected = logits_of_positive(table[f"response ({name})"].tolist())
        assert table[f"scores ({name})"].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
        starts = zip(table[f"response ({name})"], table["query"], strict=True)
        assert all(text.startswith(query) for text, query in starts)
    assert table["scores (best_of)"].mean() > table["scores (ref)"].mean()
    assert sys.modules["fastrl"].BestOfNSampler is found["BestOfNSampler"]
