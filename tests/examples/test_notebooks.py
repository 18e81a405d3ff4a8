"""The notebooks run as shipped, with a local hub of tiny models under the names they load."""

from __future__ import annotations

import ast
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.examples.local_hub import CLASSIFIER, notebook

matplotlib.use("Agg")
NOTEBOOKS = Path(__file__).resolve().parents[2] / "examples" / "notebooks"
NAMES = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_nbformat_4_without_outputs(name):
    found = notebook.read(NOTEBOOKS / name)
    assert (found["nbformat"], set(found) - {"cells", "metadata"}) == (
        4,
        {"nbformat", "nbformat_minor"},
    )
    ids = [cell["id"] for cell in found["cells"]]
    assert len(set(ids)) == len(ids) and found["cells"][0]["cell_type"] == "markdown"
    for cell in found["cells"]:
        own = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            ast.parse("".join(cell["source"]))  # no magics: it runs without IPython too
            own |= {"outputs", "execution_count"}
        assert set(cell) == own


def test_gpt2_control_and_gpt2_sentiment_control_are_one_notebook():
    control, other = (NOTEBOOKS / f"gpt2-{n}.ipynb" for n in ("control", "sentiment-control"))
    assert control.read_bytes() == other.read_bytes()


@pytest.fixture
def run(local_hub_directory, monkeypatch):
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    return lambda name: notebook.run(NOTEBOOKS / name)


def logits_of_positive(texts):
    """By a classifier read from its folder, one text at a time: no pipeline, no padding."""
    model = AutoModelForSequenceClassification.from_pretrained(CLASSIFIER).eval()
    tokenizer = AutoTokenizer.from_pretrained(CLASSIFIER)
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).logits[0, 1].item() for text in texts]


def same_weights(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no v_head weight")
def test_notebook_gpt2_sentiment_runs_as_shipped(run):
    found = run("gpt2-sentiment.ipynb")
    batch, stats = found["batch"], found["stats"]
    assert found["config"].model_name == "lvwerra/gpt2-imdb"
    assert len(batch["query"]) == found["config"].batch_size == 128
    assert all(2 <= len(ids) < 8 for ids in batch["input_ids"])
    assert all(1 <= len(ids) < 16 for ids in found["response_tensors"])

    texts = [q + r for q, r in zip(batch["query"], batch["response"], strict=True)]
    rewards = torch.stack(found["rewards"])
    np.testing.assert_allclose(rewards, logits_of_positive(texts), rtol=1e-4, atol=1e-4)
    assert stats["ppo/mean_scores"] == pytest.approx(rewards.mean().item(), rel=1e-5)
    assert rewards.std() > 0.01
    start = AutoModelForCausalLM.from_pretrained("lvwerra/gpt2-imdb")
    assert same_weights(found["ref_model"].pretrained_model, start)
    assert not same_weights(found["model"].pretrained_model, start)

    table = found["df_results"]
    for name in ("before", "after"):
        shown = [q + r for q, r in zip(table["query"], table[f"response ({name})"], strict=True)]
        expected = logits_of_positive(shown)
        np.testing.assert_allclose(table[f"rewards ({name})"], expected, rtol=1e-4, atol=1e-4)
    saved = AutoModelForCausalLM.from_pretrained("gpt2-imdb-pos-v2")
    assert same_weights(saved, found["model"].pretrained_model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no v_head weight")
def test_notebook_gpt2_control_runs_as_shipped(run):
    found = run("gpt2-control.ipynb")
    worth = found["pos_logit_to_reward"]
    assert worth(torch.ones(3), found["ctrl_str"]) == [-1, 2, 1]
    with pytest.raises(ValueError, match="task has to be one of"):
        worth(torch.ones(1), ["[angry]"])

    words, tasks = found["ctrl_tokens"], found["task_list"]
    for task, query, ids in zip(
        tasks, found["query_tensors"], found["batch"]["input_ids"], strict=True
    ):
        assert query.tolist() == words[task].tolist() + ids.tolist()
    assert {len(ids) for ids in found["response_tensors"]} == {20}  # -1 ends none

    data = zip(found["batch"]["query"], found["game_data"]["response"], strict=True)
    logits = logits_of_positive([query + response for query, response in data])
    by_hand = {"[negative]": [], "[neutral]": [], "[positive]": []}
    for task, logit in zip(tasks, logits, strict=True):
        reward = {"[negative]": -logit, "[neutral]": 4 - 2 * abs(logit), "[positive]": logit}
        by_hand[task].append(reward[task])
    for task, own in by_hand.items():
        key = f"env/reward_{task[1:-1]}"
        assert found["stats"][key] == pytest.approx(np.mean(own), abs=1e-4)

    assert all(text.startswith(" The film was") for text in found["reviews"].values())
    saved = AutoModelForCausalLM.from_pretrained("gpt2-imdb-ctrl")
    assert same_weights(saved, found["gpt2_model"].pretrained_model)
    assert not same_weights(saved, found["gpt2_ref_model"].pretrained_model)
