"""BCO's loss, shift and weights by arithmetic; its rows; a run that is resumed; what is refused."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset

from fastrl import BCOConfig, BCOTrainer
from fastrl.algos.bco import bco_loss
from fastrl.algos.bco_matching import PromptClassifier
from fastrl.data.prepare_bco import prepare_bco
from fastrl.data.prepare_unpaired import prepare_unpaired
from tests.algos.bco_prm_parity import running
from tests.algos.bco_prm_parity.regression import LogisticRegression, regression
from tests.algos.bco_prm_parity.running import Case, embed
from tests.algos.offline_parity import making
from tests.algos.offline_parity.running import BASE

LIBRARY = sys.modules["fastrl"]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_the_loss_of_good_and_bad_answers():
    rewards, good = torch.tensor([0.7, -0.2, 1.1]), torch.tensor([True, False, False])
    want = -(log_sigmoid(0.7 - 0.3) + log_sigmoid(0.3 + 0.2) + log_sigmoid(0.3 - 1.1)) / 3
    assert bco_loss(rewards, good, 0.3).item() == pytest.approx(want, rel=1e-6)
    weights = torch.tensor([9.0, 0.5, 2.0])  # that of a good answer has no part
    want = log_sigmoid(0.4) + 0.5 * log_sigmoid(0.5) + 2.0 * log_sigmoid(-0.8)
    assert bco_loss(rewards, good, 0.3, weights).item() == pytest.approx(-want / 3, rel=1e-6)


def test_the_density_ratio_of_prompts_is_the_odds_within_bounds():
    # One feature, σ(ln 3 · e): a prompt at e = 1 is thrice as likely to have a good answer.
    classifier = PromptClassifier(torch.tensor([math.log(3.0)]), 0.0)
    embeddings = torch.tensor([[1.0], [0.0], [-1.0], [5.0], [40.0]])
    found = classifier.density_ratio(embeddings, 0.5, 10.0)
    assert found.tolist() == pytest.approx([3.0, 1.0, 0.5, 10.0, 10.0])


def test_the_classifier_is_at_the_optimum_and_both_kinds_count_alike():
    random = np.random.RandomState(0)
    good, bad = random.standard_normal((40, 3)) + 0.5, random.standard_normal((9, 3))
    with regression():
        found = PromptClassifier.fit(torch.tensor(good), torch.tensor(bad))
    inputs = np.c_[np.concatenate([good, bad]), np.ones(49)]
    beta = np.append(found.weight.double().numpy(), found.bias)
    residual = 1 / (1 + np.exp(-inputs @ beta)) - np.repeat([1.0, 0.0], [40, 9])
    share = np.repeat([40 / 49, 9 / 49], [40, 9])
    slope = inputs.T @ (residual * 0.5 / share) + np.append(beta[:3], 0.0)
    assert np.abs(slope).max() < 5e-3  # scikit-learn's tolerance, 1e-4 a row
    assert np.abs(beta).max() > 0.2


def test_newtons_optimum_is_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model")
    random = np.random.RandomState(1)
    inputs, labels = random.standard_normal((60, 4)), np.arange(60) % 3 == 0
    theirs = linear_model.LogisticRegression(class_weight="balanced", tol=1e-10).fit(inputs, labels)
    ours = LogisticRegression("balanced").fit(inputs, labels.astype(int))
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-5)


def prepared(rows, tmp_path, embedding=None, bos=False, **settings):
    config = BCOConfig(str(tmp_path), use_cpu=True, report_to="none", **settings)
    tokenizer = making.tokenizer()
    if bos:
        tokenizer.bos_token = "<|im_start|>"
    made = prepare_bco(Dataset.from_list(rows), tokenizer, config, "train", embedding)
    decode = lambda ids: "".join(tokenizer.convert_ids_to_tokens(ids))  # noqa: E731
    return [
        (decode(row["prompt_ids"]), decode(row["completion_ids"]), row["label"]) for row in made
    ], made


def test_rows_begin_with_bos_and_end_with_eos(tmp_path):
    row = {"prompt": "abc", "completion": "de", "label": True}
    assert prepared([row], tmp_path)[0] == [("abc", "de<eos>", True)]
    assert prepared([row], tmp_path, bos=True)[0] == [("<|im_start|>abc", "de<eos>", True)]
    pair = {"prompt": "abc", "chosen": "d", "rejected": "ef<eos>"}
    assert prepared([pair], tmp_path)[0] == [("abc", "d<eos>", True), ("abc", "ef<eos>", False)]


def test_long_rows_are_cut(tmp_path):
    # Room for 10 less a BOS and an EOS; the answer gives way, its end is marked all the same.
    row = {"prompt": "abcde", "completion": "fghijk", "label": False}
    assert prepared([row], tmp_path, max_length=10)[0] == [("abcde", "fgh<eos>", False)]
    end = prepared([row], tmp_path, max_length=10, max_prompt_length=2)[0]
    assert end == [("de", "fghijk<eos>", False)]
    start = {"max_prompt_length": 3, "truncation_mode": "keep_start"}
    assert prepared([row], tmp_path, max_length=8, **start)[0] == [("abc", "fgh<eos>", False)]
    long = {**row, "prompt": "abcdefgh"}
    with pytest.raises(ValueError, match=r"none of the 1 rows .* max_length=10"):
        prepared([long], tmp_path, max_length=10)
    assert len(prepared([row, long], tmp_path, max_length=10)[0]) == 1


def test_prompts_are_embedded_as_the_chat_template_writes_them(tmp_path):
    tokenizer = making.tokenizer()
    row = {
        "prompt": [making.turn("user", "abc")],
        "completion": [making.turn("assistant", "de")],
        "label": True,
    }
    text = "<|im_start|>user\nabc<|im_end|>\n<|im_start|>assistant\n"
    made = prepared([row], tmp_path, tokenizer)[1]
    assert made[0]["embedding_ids"] == tokenizer(text)["input_ids"]
    assert made[0]["completion_ids"][-1] == tokenizer.eos_token_id


MATCHED = Case("resumed", "BCO", matched=True, steps=6)


def made(tmp_path, case=MATCHED, **config):
    with regression():
        return running.trainer_of(case, LIBRARY, str(tmp_path), config=config)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    saved = {"save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}
    whole = made(tmp_path / "one", **saved)
    whole.train()
    checkpoint = tmp_path / "one" / "checkpoint-3"
    kept = json.loads((checkpoint / "running.json").read_text())
    assert kept["count"] == 3 * 2 * 4
    # What is kept holds, not what is learnt anew.
    other = made(tmp_path / "two", **saved, prompt_sample_size=3)
    assert not torch.equal(other.clf.weight, whole.clf.weight)
    other.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(other.clf.weight, whole.clf.weight)
    assert float(other.running.mean) == pytest.approx(float(whole.running.mean), rel=1e-6)
    weights = other.model.state_dict()
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-6, atol=1e-6, msg=name)


def test_a_checkpoint_without_delta_is_named_before_weights_are_loaded(tmp_path):
    trainer = made(tmp_path, Case("resumed", "BCO", steps=1))
    folder = tmp_path / "checkpoint-3"
    trainer.save_model(str(folder))
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.zero_()
    with pytest.raises(ValueError, match=r"checkpoint-3/running\.json is missing.*model='.*-3'"):
        trainer.train(resume_from_checkpoint=str(folder))
    assert not any(weight.any() for weight in trainer.model.parameters())


def test_evaluation_leaves_delta_alone(tmp_path):
    trainer = made(tmp_path, Case("evaluated", "BCO", evaluate=True, reference=True, steps=1))
    found = trainer.evaluate()
    assert found["eval_delta"] == 0.0 and trainer.running.count < 1
    trainer.train()
    mean, count = float(trainer.running.mean), trainer.running.count
    assert trainer.evaluate()["eval_delta"] == pytest.approx(mean) and mean != 0.0
    assert trainer.running.count == pytest.approx(count) == pytest.approx(4)


def test_bad_configs(tmp_path):
    for said, given in {
        "truncation_mode='middle' is none of": {"truncation_mode": "middle"},
        "max_prompt_length must be positive, got 0": {"max_prompt_length": 0},
        "prompt_sample_size must be positive, got 0": {"prompt_sample_size": 0},
        "min_density_ratio=2.0 and max_density_ratio=1.0": {
            "min_density_ratio": 2.0,
            "max_density_ratio": 1.0,
        },
    }.items():
        with pytest.raises(ValueError, match=said):
            BCOConfig(str(tmp_path), use_cpu=True, **given)


@pytest.mark.parametrize("prepare", [prepare_bco, prepare_unpaired])
def test_what_is_no_dataset_is_refused(prepare, tmp_path):
    rows = [{"prompt": "abc", "completion": "de", "label": True}]
    with pytest.raises(
        TypeError, match=r"the eval dataset must be a datasets\.Dataset .* not list"
    ):
        prepare(rows, making.tokenizer(), BCOConfig(str(tmp_path), use_cpu=True), "eval", None)


def test_bad_embeddings_are_refused_before_anything_is_changed(tmp_path, monkeypatch):
    model = making.model()
    rows = making.rows("unpaired", 6)

    def build(train_dataset=rows, **given):
        config = BCOConfig(str(tmp_path), **BASE)
        return BCOTrainer(
            model, args=config, train_dataset=train_dataset,
            processing_class=making.tokenizer(), **given,
        )  # fmt: skip

    tokenizer = making.tokenizer()
    both = {"embedding_func": embed, "embedding_tokenizer": tokenizer}
    with pytest.raises(ValueError, match="embedding_func is given without embedding_tokenizer"):
        build(embedding_func=embed)
    with pytest.raises(ValueError, match="embedding_tokenizer is given without embedding_func"):
        build(embedding_tokenizer=tokenizer)
    with pytest.raises(TypeError, match="embedding_func must be a function"):
        build(embedding_func="model", embedding_tokenizer=tokenizer)
    with pytest.raises(TypeError, match="embedding_tokenizer must be a tokenizer, got str"):
        build(embedding_func=embed, embedding_tokenizer="bert")
    stream = IterableDataset.from_generator(lambda: iter(rows))
    with pytest.raises(ValueError, match="which a stream does not have"):
        build(stream, **both)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        build(**both)
    monkeypatch.undo()
    good = rows.filter(lambda row: row["label"])
    with regression(), pytest.raises(ValueError, match="no row of train_dataset has label=False"):
        build(good, **both)
    unpadded = making.tokenizer()
    unpadded.pad_token = None
    with pytest.raises(ValueError, match="embedding_tokenizer has no padding token"):
        build(embedding_func=embed, embedding_tokenizer=unpadded)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda found: found.numpy(), TypeError, r"tensor \(4, D\) of 4 prompts, got ndarray"),
        (lambda found: found.sum(1), ValueError, r"one vector for each of 4 .* is \(4,\)"),
        (lambda found: found[:3], ValueError, r"one vector for each of 4 .* is \(3, 6\)"),
        (lambda found: found / 0, ValueError, "embedding_func returned NaN or infinity"),
    ],
)
def test_what_is_no_embedding_is_refused(change, error, said, tmp_path):
    with regression(), pytest.raises(error, match=said):
        BCOTrainer(
            making.model(), args=BCOConfig(str(tmp_path), **BASE),
            train_dataset=making.rows("unpaired", 12), processing_class=making.tokenizer(),
            embedding_func=lambda **given: change(embed(**given)),
            embedding_tokenizer=making.tokenizer(),
        )  # fmt: skip


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    tokenizer = making.tokenizer()
    tokenizer.eos_token = None
    rows = [{"prompt": "abc", "completion": "de", "label": True}]
    with pytest.raises(ValueError, match="no eos_token to end texts with"):
        prepare_bco(Dataset.from_list(rows), tokenizer, BCOConfig(str(tmp_path), use_cpu=True))


def test_the_call_of_0_11(tmp_path):
    config = BCOConfig(str(tmp_path), **BASE)
    rows, tokenizer = making.rows("unpaired", 6), making.tokenizer()
    with pytest.warns(FutureWarning, match="old spellings"):
        old = BCOTrainer(
            making.model(), None, config, rows, None, tokenizer=tokenizer,
            model_adapter_name="default",
        )  # fmt: skip
    new = BCOTrainer(making.model(), args=config, train_dataset=rows, processing_class=tokenizer)
    assert old.train_dataset[:] == new.train_dataset[:]
    with pytest.raises(TypeError, match="model=model_init"):
        BCOTrainer(making.model(), args=config, train_dataset=rows, model_init=making.model)
