"""What trainers log and write, the settings and rows that they take, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import HfArgumentParser, TrainingArguments

from fastrl import (
    DPOConfig,
    DPOTrainer,
    RewardConfig,
    RewardTrainer,
    RichProgressCallback,
    SFTConfig,
)
from fastrl.train.batch import Batch
from tests.algos.offline_parity import making
from tests.train.offline_runs import BASE, build, losses

# --- logs -----------------------------------------------------------------------------------------


def test_each_evaluation_set_logs_under_its_own_name(tmp_path):
    sets = {"left": making.rows("completion", 6, 1), "right": making.rows("completion", 9, 2)}
    trainer = build(tmp_path, eval_dataset=sets, eval_strategy="steps", eval_steps=4)
    trainer.train()
    found = {k: v for entry in trainer.state.log_history for k, v in entry.items()}
    for name in sets:
        assert found[f"eval_{name}_entropy"] > 0
        assert found[f"eval_{name}_num_tokens"] == found["num_tokens"]
    assert found["eval_left_entropy"] != found["eval_right_entropy"]


def test_a_dataset_given_to_evaluate_is_prepared(tmp_path):
    trainer = build(tmp_path, eval_dataset=making.rows("completion", 6, 1))
    at_start = trainer.evaluate()
    later = trainer.evaluate(making.rows("completion", 6, 1))
    assert later["eval_loss"] == pytest.approx(at_start["eval_loss"], rel=1e-6)


def test_compute_metrics_gets_logits(tmp_path):
    seen = {}

    def measure(prediction: Any) -> dict[str, float]:
        seen["shapes"] = prediction.predictions.shape, prediction.label_ids.shape
        return {"measured": 1.0}

    rows = making.rows("preference", 6, 1)
    model = making.model("qwen2", "score")
    trainer = RewardTrainer(
        model,
        RewardConfig(str(tmp_path), **BASE),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=making.tokenizer(),
        compute_metrics=measure,
    )
    assert trainer.evaluate()["eval_measured"] == 1.0
    assert seen["shapes"] == ((6, 2), (6,))


@pytest.mark.parametrize("early", [True, False])
def test_richs_progress_takes_the_place_of_transformers_own(tmp_path, early):
    trainer = build(tmp_path, callbacks=[RichProgressCallback()] if early else None)
    if not early:
        trainer.add_callback(RichProgressCallback)
    kinds = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    assert kinds.count("RichProgressCallback") == 1
    assert not {"PrinterCallback", "ProgressCallback"} & set(kinds)


def test_nothing_is_pinned_without_a_device(tmp_path):
    assert SFTConfig(str(tmp_path), use_cpu=True).dataloader_pin_memory is False


def test_the_card_says_how_the_model_is_used(tmp_path):
    trainer = build(tmp_path, "reward")
    trainer.create_model_card("judge", "pairs", tags="mine")
    card = (tmp_path / "README.md").read_text()
    for part in ("text-classification", 'model="judge"', "- pairs", "- mine", "**Reward**"):
        assert part in card


# --- settings -------------------------------------------------------------------------------------


def test_plain_training_arguments_are_taken_over(tmp_path):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, learning_rate=3e-4, hub_token="key")
    config = SFTConfig.of(arguments, "unused")
    assert (config.learning_rate, config.hub_token, config.max_length) == (3e-4, "key", 1024)


def test_the_config_of_another_trainer_is_refused(tmp_path):
    with pytest.raises(TypeError, match="args must be a DPOConfig"):
        DPOConfig.of(SFTConfig(str(tmp_path), use_cpu=True), "unused")


def test_fp32_where_the_device_has_no_bf16(tmp_path):
    config = SFTConfig(str(tmp_path), use_cpu=True)
    assert config.bf16 is False
    assert config.gradient_checkpointing is True
    assert SFTConfig(str(tmp_path), use_cpu=True, bf16=True).bf16 is True


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("loss_type", "nlll", "none of nll, dft; did you mean 'nll'"),
        ("packing_strategy", "bdf", "did you mean 'bfd'"),
        ("truncation_mode", "keep", "keep_start"),
        ("pad_to_multiple_of", "many", "'auto' or a number"),
        ("max_length", 0, "max_length must leave room"),
        ("dataset_kwargs", {"skip_prepare": True}, "did you mean 'skip_prepare_dataset'"),
    ],
)
def test_a_value_outside_its_list_is_refused(tmp_path, field, value, said):
    with pytest.raises(ValueError, match=said):
        SFTConfig(str(tmp_path), use_cpu=True, **{field: value})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("beta", "0.1", "beta='0.1': a number is needed"),
        ("learning_rate", "1e-5", "learning_rate='1e-5': a number"),  # as PyYAML reads it
        ("max_length", 8.5, r"max_length=8\.5: a whole number is needed"),
        ("dataset_num_proc", True, "dataset_num_proc=True: a whole number"),
        ("disable_dropout", "no", "disable_dropout='no': True or False is needed"),
        ("beta", math.nan, "beta=nan: a number"),
        ("truncation_mode", 3, "truncation_mode=3 is none of"),
    ],
)
def test_a_value_of_another_kind_is_refused(tmp_path, field, value, said):
    HfArgumentParser(DPOConfig)  # which rewrites the types of the class's fields
    with pytest.raises(ValueError, match=said):
        DPOConfig(str(tmp_path), use_cpu=True, **{field: value})
    fits = {"beta": np.float32(0.5), "max_length": np.int64(8), "disable_dropout": np.True_}
    DPOConfig(str(tmp_path), use_cpu=True, learning_rate=1, **fits)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"beta": 0.0}, "beta must be positive"),
        ({"loss_type": "exo_pair"}, "label_smoothing"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "1 entries for the 2 losses"),
        ({"loss_type": "aot", "use_weighting": True}, "sorts them apart"),
        ({"loss_type": "aot", "f_divergence_type": "forward_kl"}, "no meaning for loss_type 'aot'"),
        ({"sync_ref_model": True, "precompute_ref_log_probs": True}, "leave one out"),
    ],
)
def test_contradictions_are_refused(tmp_path, keywords, said):
    with pytest.raises(ValueError, match=said):
        DPOConfig(str(tmp_path), use_cpu=True, **keywords)


@pytest.mark.parametrize(
    ("keywords", "error", "said"),
    [
        ({"train_dataset": None}, ValueError, "train_dataset is required"),
        ({"train_dataset": [{"text": "a"}]}, TypeError, "Dataset.from_list"),
        (
            {"train_dataset": Dataset.from_dict({"text": ["a"], "images": ["b"]})},
            ValueError,
            "'images'",
        ),
        ({"model": 7}, TypeError, "model must be a name"),
        ({"peft_config": {"r": 4}}, ValueError, "peft_config must be a peft.PeftConfig"),
    ],
)
def test_what_no_trainer_can_use_is_refused(tmp_path, keywords, error, said):
    with pytest.raises(error, match=said):
        build(tmp_path, **keywords)


@pytest.mark.parametrize("wrong", [80, -1])
def test_ids_the_model_does_not_know_are_refused(tmp_path, wrong):
    rows = [{"input_ids": [5, 6, 7]}] * 3 + [{"input_ids": [5, wrong, 7]}]
    with pytest.raises(ValueError, match=f"train_dataset row 3: input_ids holds the id {wrong}"):
        build(tmp_path, train_dataset=Dataset.from_list(rows))
    build(tmp_path, train_dataset=Dataset.from_list(rows).select([2, 1, 0]))


def test_an_empty_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train_dataset has no rows"):
        build(tmp_path, train_dataset=making.rows("text", 3).select([]))


def test_a_stream_trains_like_its_rows(tmp_path):
    rows = making.rows("completion", 16)
    listed = build(tmp_path / "a", train_dataset=rows, train_sampling_strategy="sequential")
    streamed = build(tmp_path / "b", train_dataset=rows.to_iterable_dataset())
    listed.train()
    streamed.train()
    assert losses(streamed) == pytest.approx(losses(listed), rel=1e-6)


def test_a_stream_without_steps_is_refused(tmp_path):
    rows = making.rows("completion", 16).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"max_steps"):
        build(tmp_path, train_dataset=rows, max_steps=-1)


def test_the_reference_must_be_another_model(tmp_path):
    model = making.model()
    with pytest.raises(ValueError, match="trained along"):
        DPOTrainer(
            model,
            model,
            DPOConfig(str(tmp_path), **BASE),
            train_dataset=making.rows("preference", 8),
            processing_class=making.tokenizer(),
        )


def test_a_rebuilt_batch_keeps_what_the_host_knows():
    batch = Batch({"input_ids": torch.zeros(1, 2), "spans": None, "pooled": [1]})
    assert set(batch) == {"input_ids"}
    assert batch.pooled == [1]


def test_the_chat_template_of_a_file_or_another_model(tmp_path):
    other = making.tokenizer("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "own.jinja").write_text(making.CHATML)
    for path, template in (
        (tmp_path / "other", other.chat_template),
        (tmp_path / "own.jinja", making.CHATML),
    ):
        trainer = build(
            tmp_path / "run",
            train_dataset=making.rows("messages", 8),
            chat_template_path=str(path),
        )
        assert trainer.processing_class.chat_template == template
