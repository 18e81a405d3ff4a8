"""GKD: ten steps log what TRL 1.16 logs; whose answers are learnt; resuming; what is refused.

The numbers of TRL were recorded by `gkd_parity/record.py`.
"""

from __future__ import annotations

import json
import math
import random
import warnings
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from fastrl.algos.gkd import GKDTrainer, answered
from fastrl.algos.gkd_config import GKDConfig
from tests.algos.gkd_parity import running
from tests.algos.offline_parity import making

RECORDED = json.loads((Path(__file__).parent / "gkd_parity" / "recorded.json").read_text())["logs"]
OWN = {"entropy", "num_tokens"}  # what TRL does not log


@pytest.mark.parametrize("case", running.CASES, ids=lambda case: case.name)
def test_logs_what_trl_logs(case):
    logs, recorded = running.run(case, GKDTrainer, GKDConfig), RECORDED[case.name]
    assert len(logs) == len(recorded)
    for step, (ours, theirs) in enumerate(zip(logs, recorded, strict=True)):
        own = {key for key in ours if key.removeprefix("eval_") in OWN}
        assert own
        assert set(ours) - own == set(theirs)
        for key, want in theirs.items():
            assert math.isclose(ours[key], want, rel_tol=1e-4, abs_tol=2e-6), (step, key)


def made(folder, **given):
    """A trainer of two rows at a time on the conversations of the parity runs."""
    names = ("model", "teacher_model", "train_dataset", "data_collator", "formatting_func")
    names += ("processing_class",)
    own = {name: given.pop(name) for name in names if name in given}
    config = {**running.BASE, "per_device_train_batch_size": 2, "lmbda": 0.0, "max_steps": 2}
    arguments = {
        "model": making.model("qwen2"),
        "teacher_model": making.model("llama"),
        "train_dataset": running.rows(8, ragged=True),
        **own,
    }
    args = GKDConfig(str(folder), **{**config, "max_new_tokens": 6, **given})
    arguments.setdefault("processing_class", making.tokenizer())
    return GKDTrainer(args=args, **arguments)


def test_a_batch_with_other_answers():
    batch = {
        "prompts": torch.tensor([[0, 5, 6], [7, 8, 9]]),
        "prompt_attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
    }
    found = answered(batch, [[11, 1], [12]], pad_token_id=0)
    assert found["input_ids"].tolist() == [[0, 5, 6, 11, 1], [7, 8, 9, 12, 0]]
    assert found["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert found["labels"].tolist() == [[-100, -100, -100, 11, 1], [-100, -100, -100, 12, -100]]
    tokens = found["spans"].tokens(found["input_ids"])
    assert (tokens.starts, tokens.lengths, list(tokens.scored)) == ([1, 0], [4, 4], [2, 3])


def test_the_loss_is_a_mean_over_the_answers_that_were_drawn(tmp_path, monkeypatch):
    """Two micro-batches, one with the student's answers: one mean over the tokens of both."""
    trainer = made(tmp_path, lmbda=0.5, gradient_accumulation_steps=2, max_steps=1)
    coins = iter([0.9, 0.1])
    monkeypatch.setattr(random, "random", lambda: next(coins))
    seen = []
    loss_of = trainer.compute_loss

    def compute_loss(model, inputs, **keywords):
        loss = loss_of(model, inputs, **keywords)
        with torch.no_grad():
            plain = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            p, q = (
                torch.softmax(one(**plain).logits[:, :-1].double(), -1)
                for one in (model, trainer.teacher_model)
            )
            m = (p + q) / 2
            each = 0.5 * (q * (q / m).log() + p * (p / m).log()).sum(-1)
            learnt = inputs["labels"][:, 1:] != -100
            seen.append((loss.item(), each[learnt].sum().item(), int(learnt.sum()), inputs))
        return loss

    trainer.compute_loss = compute_loss
    trainer.train()
    (first, one, own, given), (second, other, drawn, answers) = seen
    assert first == pytest.approx(one / (own + drawn), rel=1e-4)
    assert second == pytest.approx(other / (own + drawn), rel=1e-4)
    width = answers["prompts"].shape[1]
    assert answers["input_ids"][:, :width].tolist() == answers["prompts"].tolist()
    assert drawn <= 2 * 6
    assert "spans" not in given


@pytest.mark.slow
def test_resumes_as_if_it_had_not_stopped(tmp_path):
    settings = {"lmbda": 0.5, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = made(tmp_path / "whole", **settings)
    whole.train()
    stopped = made(tmp_path / "stopped", **{**settings, "max_steps": 2})
    stopped.args.lr_scheduler_type = whole.args.lr_scheduler_type
    stopped.train()
    resumed = made(tmp_path / "stopped", **settings)
    resumed.train(resume_from_checkpoint=True)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    losses = [
        [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        for trainer in (whole, resumed)
    ]
    assert losses[0] == losses[1]


def test_the_teacher_stays_and_needs_no_gradient(tmp_path):
    teacher = making.model("llama")
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    trainer = made(tmp_path, teacher_model=teacher)
    start = trainer.model.state_dict()["model.layers.0.mlp.up_proj.weight"].clone()
    trainer.train()
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not torch.equal(start, trainer.model.state_dict()["model.layers.0.mlp.up_proj.weight"])


def test_a_teacher_by_name_and_columns_of_a_collator_of_ones_own(tmp_path):
    teacher = making.model("llama")
    teacher.save_pretrained(tmp_path / "teacher")
    rows = running.rows(4, ragged=True).add_column("kind", ["a", "b", "a", "b"])
    seen = []

    def collate(examples):
        seen.extend(example["kind"] for example in examples)
        from fastrl.data.collate_chatml import DataCollatorForChatML

        return DataCollatorForChatML(making.tokenizer(), max_length=64, truncation_mode="keep_end")(
            examples
        )

    trainer = made(
        tmp_path,
        teacher_model=None,
        teacher_model_name_or_path=str(tmp_path / "teacher"),
        teacher_model_init_kwargs={"dtype": "float32"},
        data_collator=collate,
        train_dataset=rows,
    )
    trainer.train()
    assert set(seen) == {"a", "b"}
    own = made(tmp_path / "own", train_dataset=running.rows(4, ragged=True), max_length=64)
    own.train()
    assert trainer.state.log_history[0]["loss"] == own.state.log_history[0]["loss"]


def test_called_as_in_0_11(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = GKDTrainer(
            making.model("llama"),
            GKDConfig(str(tmp_path), use_cpu=True, max_seq_length=33, report_to="none"),
            making.model("qwen2"),
            tokenizer=making.tokenizer(),
            train_dataset=running.rows(4, ragged=True),
        )
    assert type(trainer.model).__name__ == "Qwen2ForCausalLM"
    assert type(trainer.teacher_model).__name__ == "LlamaForCausalLM"
    assert trainer.args.max_length == 33


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teacher_model": None}, "teacher_model is required"),
        ({"lmbda": 1.5}, "lmbda must be between 0 and 1, got 1.5"),
        ({"beta": -0.1}, "beta must be between 0 and 1, got -0.1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"packing": True}, "packing=True has no part in GKDConfig"),
        ({"loss_type": "dft"}, "loss_type='dft' has no part in GKDConfig"),
        ({"formatting_func": str}, "formatting_func: rows are conversations"),
        ({"teacher_model_init_kwargs": {"dtype": "float32"}}, "teacher_model_init_kwargs is for"),
        ({"train_dataset": making.rows("text", 4)}, "train_dataset has the columns text; rows"),
    ],
)
def test_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        made(tmp_path, **given)


def talks(*said):
    """Conversations of these turns, by turns the user's and the assistant's."""
    roles = ("user", "assistant") * 3
    chats = [[making.turn(*turn) for turn in zip(roles, turns, strict=False)] for turns in said]
    return Dataset.from_dict({"messages": chats})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (talks(("a", "b"), ()), "train_dataset row 1: messages has 0 turns, but needs 2 or more"),
        (talks(("a", "b"), ("a",)), "train_dataset row 1: messages has 1 turns"),
        (talks(("a", "b"), ("a", "b", "c")), "row 1: its last turn is the user's"),
        (Dataset.from_dict({"messages": ["a", "b"]}), "row 0: messages must be a list of"),
        (
            Dataset.from_dict({"messages": [*talks(("a", "b"))["messages"], None]}),
            "train_dataset row 1: messages must be a list of messages .* got None",
        ),
    ],
)
def test_rows_that_are_no_conversation_with_an_answer(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        made(tmp_path, train_dataset=rows)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_leaves_no_room_for_its_prompt(tmp_path, stream):
    """It is learnt, but nothing can be drawn to it."""
    rows = talks(("a", "b"), ("a", "c" * 60))
    made(tmp_path / "given", train_dataset=rows, max_length=20, max_steps=1).train()
    rows = rows.to_iterable_dataset() if stream else rows
    where = "a row of train_dataset" if stream else "train_dataset row 1"
    with pytest.raises(ValueError, match=f"{where}: its answer fills max_length"):
        made(tmp_path, train_dataset=rows, max_length=20, lmbda=1.0).train()


def test_a_collator_without_prompts_and_a_tokenizer_without_template(tmp_path):
    def collate(examples):
        ids = torch.tensor([[5, 6, 7, 8]] * len(examples))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    with pytest.raises(ValueError, match="data_collator must give prompts and prompt_attention"):
        made(tmp_path, data_collator=collate, lmbda=1.0).train()
    plain = making.tokenizer()
    plain.chat_template = None
    with pytest.raises(ValueError, match="processing_class has no chat template"):
        made(tmp_path, processing_class=plain)


def test_a_teacher_over_another_vocabulary_is_refused(tmp_path):
    teacher = making.model("llama")
    teacher.resize_token_embeddings(96)
    with pytest.raises(ValueError, match="teacher_model has vocab_size 96 and model 80"):
        made(tmp_path, teacher_model=teacher)
