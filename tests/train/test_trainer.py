"""What users of `transformers.Trainer` may expect of ours: overrides, resuming, no waits."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    TrainerCallback,
    TrainingArguments,
)

from fastrl import (
    CPOConfig,
    CPOTrainer,
    DPOConfig,
    DPOTrainer,
    RewardConfig,
    RewardTrainer,
    RichProgressCallback,
    SFTConfig,
    SFTTrainer,
)
from fastrl.train.batch import Batch
from tests.algos.offline_parity import making

linear_op = sys.modules["fastrl.ops.linear_token_logprobs"]

BASE: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "max_steps": 4,
    "logging_steps": 1,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
KINDS = {
    "sft": (SFTTrainer, SFTConfig, "completion", "lm"),
    "cpo": (CPOTrainer, CPOConfig, "preference", "lm"),
    "dpo": (DPOTrainer, DPOConfig, "preference", "lm"),
    "reward": (RewardTrainer, RewardConfig, "preference", "score"),
}


def build(folder: Any, kind: str = "sft", cls: type | None = None, **given: Any) -> Any:
    trainer, config, rows, architecture = KINDS[kind]
    keywords = {
        "model": making.model("qwen2", architecture),
        "processing_class": making.tokenizer(),
        "train_dataset": making.rows(rows, 32),
    }
    keywords |= {name: given.pop(name) for name in list(given) if name in _ARGUMENTS}
    return (cls or trainer)(args=config(str(folder), **{**BASE, **given}), **keywords)


_ARGUMENTS = ("model", "train_dataset", "eval_dataset", "callbacks", "data_collator", "peft_config")


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_equal_weights(got: Any, want: Any, tolerance: float = 0.0) -> None:
    for name, parameter in want.items():
        torch.testing.assert_close(got[name], parameter, rtol=tolerance, atol=tolerance, msg=name)


# --- a NaN ----------------------------------------------------------------------------------------


class Poison(TrainerCallback):
    """Breaks one weight before the third step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step == 2:
            next(model.parameters()).data[5, 3] = math.nan
            self.kept = {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward"])
def test_a_nan_stops_before_the_weights_change(tmp_path, kind):
    poison = Poison()
    trainer = build(tmp_path, kind, callbacks=[poison])
    with pytest.raises(FloatingPointError, match="optimizer step 3: not finite"):
        trainer.train()
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), poison.kept[name], equal_nan=True)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


# --- overrides ------------------------------------------------------------------------------------


class OldSignatures(SFTTrainer):
    """Overrides as they were written before the trainer's methods gained an argument."""

    def compute_loss(self, model, inputs, return_outputs=False):
        labels = inputs.pop("labels")
        logits = model(**inputs).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        return (loss, {}) if return_outputs else loss

    def log(self, logs):
        logs["seen"] = 1.0
        super().log(logs)

    def training_step(self, model, inputs):
        return super().training_step(model, inputs)


class ModernOverride(SFTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        return 2 * loss


def test_old_signatures_of_overrides_still_work(tmp_path):
    plain = build(tmp_path / "a", gradient_accumulation_steps=2, lr_scheduler_type="constant")
    plain.train()
    old = build(
        tmp_path / "b",
        cls=OldSignatures,
        gradient_accumulation_steps=2,
        lr_scheduler_type="constant",
    )
    old.train()
    assert old.state.log_history[0]["seen"] == 1.0
    # Its loss is a mean over each micro-batch, ours over the whole step: near, but not the same.
    assert losses(old)[0] == pytest.approx(losses(plain)[0], rel=0.05)
    assert losses(old)[0] != losses(plain)[0]


def test_the_loss_of_an_old_override_is_divided_by_the_accumulation(tmp_path):
    seen = []
    for steps in (1, 2):
        trainer = build(
            tmp_path / str(steps),
            cls=OldSignatures,
            gradient_accumulation_steps=steps,
            per_device_train_batch_size=8 // steps,
            train_dataset=making.rows("text", 32).map(lambda row: {"text": row["text"][:9]}),
        )
        trainer.train()
        seen.append(losses(trainer)[0])
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)  # rows of one length: the same mean


def test_a_modern_override_gets_the_count(tmp_path):
    plain, doubled = build(tmp_path / "a"), build(tmp_path / "b", cls=ModernOverride)
    plain.train()
    doubled.train()
    assert losses(doubled)[0] == pytest.approx(2 * losses(plain)[0], rel=1e-6)


def test_a_foreign_collator_cannot_read_packed_rows(tmp_path):
    with pytest.raises(ValueError, match="with packing=True one row holds several sequences"):
        build(tmp_path, packing=True, data_collator=DataCollatorForSeq2Seq(making.tokenizer()))


def test_a_foreign_collator_trains_the_same(tmp_path):
    """Batches that no spans come with are read from their masks."""
    ours = build(tmp_path / "a", gradient_accumulation_steps=2)
    ours.train()
    foreign = build(
        tmp_path / "b",
        gradient_accumulation_steps=2,
        data_collator=DataCollatorForSeq2Seq(making.tokenizer()),
    )
    foreign.train()
    assert losses(foreign) == pytest.approx(losses(ours), rel=1e-6)


def test_left_padding_trains_the_same(tmp_path):
    tokenizer = making.tokenizer()
    tokenizer.padding_side = "left"
    ours, left = (
        build(tmp_path / "a"),
        build(tmp_path / "b", data_collator=DataCollatorForSeq2Seq(tokenizer)),
    )
    ours.train()
    left.train()
    assert losses(left) == pytest.approx(losses(ours), rel=1e-6)


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, kind):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2}
    whole = build(tmp_path / "whole", kind, **settings)
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == 3

    first = build(tmp_path / "cut", kind, callbacks=[Stop()], **settings)
    first.train()
    second = build(tmp_path / "cut", kind, **settings)
    second.train(resume_from_checkpoint=True)
    assert_equal_weights(weights(second), weights(whole))
    for key in ("loss", "num_tokens"):
        assert second.state.log_history[-2][key] == pytest.approx(
            whole.state.log_history[-2][key], rel=1e-6
        )
    logged = [json.loads(line) for line in (tmp_path / "cut" / "log.jsonl").open()]
    assert [line["step"] for line in logged if "loss" in line] == [2, 4, 6]
    assert (tmp_path / "whole" / "README.md").exists()


# --- the same step, cut differently ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward"])
def test_one_batch_of_eight_is_eight_of_one(tmp_path, kind):
    found = []
    for batch in (8, 2, 1):
        trainer = build(
            tmp_path / str(batch),
            kind,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=8 // batch,
            # Adam turns rounding of a gradient near 0 into steps of full size.
            optim="sgd",
            learning_rate=0.1,
        )
        trainer.train()
        found.append((losses(trainer), weights(trainer)))
    for loss, parameters in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert_equal_weights(parameters, found[0][1], 2e-6)


@pytest.mark.parametrize(
    "keywords",
    [
        {"activation_offloading": True},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"selective": True}},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ],
    ids=["offloading", "checkpointing", "selective", "reentrant"],
)
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_what_saves_memory_changes_nothing(tmp_path, keywords, kind):
    plain, saving = build(tmp_path / "a", kind), build(tmp_path / "b", kind, **keywords)
    plain.train()
    saving.train()
    assert losses(saving) == pytest.approx(losses(plain), rel=1e-6)
    assert_equal_weights(weights(saving), weights(plain), 1e-5)


def test_selective_checkpointing_keeps_attention(tmp_path):
    """Attention runs once a layer and segment with it, twice without."""
    counts = []
    for kwargs in (None, {"selective": True}):
        trainer = build(
            tmp_path / str(kwargs),
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs=kwargs,
        )
        trainer.model.train()
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        with Count("scaled_dot_product") as count:
            trainer.compute_loss(trainer.model, batch).backward()
        counts.append(count.forward)
    assert counts[0] == 2 * counts[1]


def test_selective_needs_checkpointing(tmp_path):
    with pytest.raises(ValueError, match="needs gradient_checkpointing=True"):
        build(tmp_path, gradient_checkpointing_kwargs={"selective": True})


# --- waits ----------------------------------------------------------------------------------------


class Count(TorchDispatchMode):
    """Counts calls of operations whose name holds a text; backward ones apart."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part, self.forward = part, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = str(operation)
        if self.part in name and "backward" not in name:
            self.forward += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["sft", "dpo", "cpo", "reward"])
def test_nothing_is_read_back_in_a_micro_step(tmp_path, kind, monkeypatch):
    # On a CPU, and there alone, the targets are checked before they are used.
    monkeypatch.setattr(linear_op, "require_targets", lambda *_: None)
    trainer = build(tmp_path, kind)
    trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert batch.spans is not None
    with Count("_local_scalar_dense") as reads, Count("nonzero") as searches:
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(50)).backward()
    assert (reads.forward, searches.forward) == (0, 0)


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
