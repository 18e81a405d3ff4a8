"""What users of `transformers.Trainer` may expect of ours: overrides, resuming, no waits."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DataCollatorForSeq2Seq, TrainerCallback

from fastrl import SFTTrainer
from tests.algos.offline_parity import making
from tests.train.offline_runs import assert_equal_weights, build, losses, weights

linear_op = sys.modules["fastrl.ops.linear_token_logprobs"]

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
