"""PRM's loss by arithmetic, its rows, packing against the model's own forward, what is refused."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from torch import nn

from fastrl import PRMConfig, PRMTrainer
from fastrl.algos.prm import prm_loss
from fastrl.data.prepare_stepwise import prepare_stepwise
from fastrl.models.token_classes import prepare_token_classes, token_logits
from fastrl.types import Tokens
from tests.algos.bco_prm_parity import running
from tests.algos.bco_prm_parity.running import Case
from tests.algos.offline_parity import making
from tests.algos.offline_parity.running import BASE

LIBRARY = sys.modules["fastrl"]
ROW = {"prompt": "ab", "completions": ["cde", "f"], "labels": [True, False]}


def test_the_loss_of_steps():
    # p(right) of two steps: σ(2) where it is right, σ(1) where it is not.
    logits = torch.tensor([[0.0, 2.0], [0.5, 1.5]])
    want = math.log1p(math.exp(-2.0)) + math.log1p(math.exp(1.0))
    loss = prm_loss(logits, torch.tensor([1, 0]), 5)
    assert loss.item() == pytest.approx(want / 5, rel=1e-6)
    # A tenth of each label is spread over both classes.
    other = math.log1p(math.exp(2.0)) + math.log1p(math.exp(-1.0))
    smooth = prm_loss(logits, torch.tensor([1, 0]), 5, smoothing=0.1)
    assert smooth.item() == pytest.approx((0.95 * want + 0.05 * other) / 5, rel=1e-6)


def prepared(rows, tmp_path, name="train", bos=False, **settings):
    """Tokens joined, and the label of each token that has one."""
    config = PRMConfig(str(tmp_path), use_cpu=True, report_to="none", **settings)
    tokenizer = making.tokenizer()
    if bos:
        tokenizer.bos_token = "<unk>"
    made = prepare_stepwise(Dataset.from_list(rows), tokenizer, config, name)
    return [
        (
            "".join(tokenizer.convert_ids_to_tokens(row["input_ids"])),
            [(place, label) for place, label in enumerate(row["labels"]) if label != -100],
        )
        for row in made
    ]


@pytest.mark.parametrize(
    ("settings", "text", "labels"),
    [
        ({}, "abcde\nf\n", [(5, 1), (7, 0)]),
        ({"bos": True}, "<unk>abcde\nf\n", [(6, 1), (8, 0)]),
        ({"step_separator": ", "}, "abcde, f, ", [(6, 1), (9, 0)]),
        ({"train_on_last_step_only": True}, "abcde\nf\n", [(7, 0)]),
        ({"train_on_last_step_only": True, "name": "eval"}, "abcde\nf\n", [(5, 1), (7, 0)]),
        ({"max_length": 7}, "abcde\nf", [(5, 1)]),
        ({"max_completion_length": 4}, "abcde\n", [(5, 1)]),
        ({"max_prompt_length": 1}, "bcde\nf\n", [(4, 1), (6, 0)]),
    ],
)
def test_a_label_stands_where_a_step_ends(tmp_path, settings, text, labels):
    assert prepared([ROW], tmp_path, **settings) == [(text, labels)]


def test_rows_without_a_label_left_are_dropped(tmp_path, caplog):
    short = {**ROW, "completions": ["", "f"]}
    assert prepared([ROW, short], tmp_path, max_length=4) == [("ab\nf", [(2, 1)])]
    assert "1 of 2 rows of the train dataset are dropped" in caplog.text


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**ROW, "labels": [True]}, "'labels' has 1 entries for 2 completions"),
        ({**ROW, "completions": [], "labels": []}, "'completions' has no steps"),
        ({**ROW, "labels": [1, 2]}, r"'labels' holds \[1, 2\]; each must be true or false"),
        ({**ROW, "completions": [["a"], ["b"]]}, "must be a string|holds a step that is no text"),
        ({**ROW, "prompt": "", "completions": ["", "f"]}, "'prompt' is empty and so is the first"),
        ({"prompt": "a", "completion": "b", "label": True}, "make none of: stepwise_supervision"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, said):
    with pytest.raises(ValueError, match=said):
        prepared([row], tmp_path)


def tokens_of(rows, scored):
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    lengths = [len(row) for row in rows]
    return Tokens(ids, [0] * len(rows), lengths, [np.array(s) for s in scored])


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2"])
def test_packed_logits_are_those_of_the_model_alone(kind):
    model = making.model(kind, "tokens").eval()
    plain = making.model(kind, "tokens").eval()
    random = np.random.RandomState(0)
    rows = [random.randint(5, 80, n).tolist() for n in (9, 4, 14, 6)]
    scored = [[3, 8], [3], [2, 5, 13], []]
    assert prepare_token_classes(model).packed
    found, at = token_logits(model, tokens_of(rows, scored))
    width = max(map(len, rows))
    wanted = [(r, p) for r, places in enumerate(scored) for p in places]
    assert at.tolist() == [r * width + p for r, p in wanted]
    alone = [plain(torch.tensor([row])).logits[0].detach() for row in rows]
    want = torch.stack([alone[r][p] for r, p in wanted])
    torch.testing.assert_close(found.detach(), want, rtol=1e-4, atol=1e-5)
    found.square().sum().backward()
    taken = torch.cat(
        [plain(torch.tensor([r])).logits[0][s] for r, s in zip(rows, scored, strict=True)]
    )
    taken.square().sum().backward()
    got, by = dict(model.named_parameters()), dict(plain.named_parameters())
    for name, parameter in by.items():
        if parameter.grad is not None:
            torch.testing.assert_close(got[name].grad, parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_looks_both_ways_is_not_packed():
    config = transformers.BertConfig(
        vocab_size=80, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, pad_token_id=0, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForTokenClassification(config).eval()
    rows, scored = [[5, 6, 7, 8, 9], [5, 6, 7]], [[2], [1]]
    alone = [model(torch.tensor([row])).logits[0] for row in rows]
    assert not prepare_token_classes(model).packed
    found, _ = token_logits(model, tokens_of(rows, scored))
    want = torch.stack([alone[0][2], alone[1][1]])
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


def made(tmp_path, case=None, **config):
    case = case or Case("plain", "PRM", steps=4)
    return running.trainer_of(case, LIBRARY, str(tmp_path), config=config)


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.slow
def test_accumulated_steps_count_every_label_alike(tmp_path):
    """The mean over all labels of a step, however its rows are divided."""
    sgd = {"optim": "sgd", "learning_rate": 0.05}
    one = made(tmp_path / "one", per_device_train_batch_size=8, **sgd)
    two = made(tmp_path / "two", gradient_accumulation_steps=2, **sgd)
    start = weights(one)
    for trainer in (one, two):
        trainer.train()
    assert (weights(one) - start).abs().max() > 1e-3
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-5, atol=1e-6)
    for left, right in zip(one.state.log_history, two.state.log_history, strict=True):
        if "loss" in left:
            assert right["loss"] == pytest.approx(left["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    saved = {"save_strategy": "steps", "save_steps": 2}
    whole = made(tmp_path / "one", **saved)
    whole.train()
    other = made(tmp_path / "two", **saved)
    other.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-2"))
    torch.testing.assert_close(weights(other), weights(whole), rtol=1e-6, atol=1e-6)


def test_predictions_for_a_metric_of_ones_own(tmp_path):
    seen = {}

    def metric(given):
        seen["logits"], seen["labels"] = given
        return {"mine": 1.0}

    trainer = PRMTrainer(
        making.model("qwen2", "tokens"),
        PRMConfig(str(tmp_path), **{**BASE, "per_device_eval_batch_size": 3}),
        train_dataset=running.stepwise(5),
        eval_dataset=running.stepwise(5, seed=1),
        processing_class=making.tokenizer(),
        compute_metrics=metric,
    )
    assert trainer.evaluate()["eval_mine"] == 1.0
    plain = making.model("qwen2", "tokens").eval()
    for row, ids in enumerate(trainer.eval_dataset["input_ids"]):
        whole = plain(torch.tensor([ids])).logits[0].detach().numpy()
        judged = np.flatnonzero(seen["labels"][row] != -100)
        assert judged.tolist() == [
            p for p, label in enumerate(trainer.eval_dataset[row]["labels"]) if label != -100
        ]
        np.testing.assert_allclose(seen["logits"][row][judged], whole[judged], rtol=1e-4, atol=1e-5)


def test_what_no_trainer_is_made_of(tmp_path):
    config = PRMConfig(str(tmp_path), **BASE)
    given = {"train_dataset": running.stepwise(4), "processing_class": making.tokenizer()}
    with pytest.raises(ValueError, match="judged by a token-classification model, got Qwen2ForC"):
        PRMTrainer(making.model(), config, **given)
    for said, wrong in {
        "max_completion_length must be positive, got 0": {"max_completion_length": 0},
        "max_prompt_length must be positive, got -1": {"max_prompt_length": -1},
        "step_separator is empty": {"step_separator": ""},
    }.items():
        with pytest.raises(ValueError, match=said):
            PRMConfig(str(tmp_path), use_cpu=True, **wrong)
    with pytest.raises(TypeError, match="step_separator must be a text, got int 3"):
        PRMConfig(str(tmp_path), use_cpu=True, step_separator=3)
    scores, tokenizer = making.model("qwen2", "score"), making.tokenizer()
    scores.config.pad_token_id = None
    with pytest.raises(ValueError, match="judged by a token-classification model, got Qwen2ForSeq"):
        PRMTrainer(scores, config, **given)
    assert scores.config.pad_token_id is None  # nothing was changed
    with pytest.raises(
        TypeError, match=r"the eval dataset must be a datasets\.Dataset .* not list"
    ):
        prepare_stepwise([ROW], tokenizer, config, "eval")


def test_a_model_by_name_and_the_call_with_a_tokenizer(tmp_path):
    making.model("qwen2", "tokens").save_pretrained(tmp_path / "model")
    config = PRMConfig(str(tmp_path / "out"), **BASE)
    with pytest.warns(FutureWarning, match="tokenizer= is processing_class="):
        trainer = PRMTrainer(
            str(tmp_path / "model"), config, None, running.stepwise(4), tokenizer=making.tokenizer()
        )
    assert type(trainer.model).__name__ == "Qwen2ForTokenClassification"
    assert not any(m.p for m in trainer.model.modules() if isinstance(m, nn.Dropout))
