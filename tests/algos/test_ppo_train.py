"""PPO's `train()` form: its loss by hand, what a batch is, samples, evaluation and files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback

import fastrl
from fastrl.algos.ppo_train import clipped_losses
from fastrl.algos.ppo_train_parts import padded_prompts, unpadded
from fastrl.models.actor_critic import Responses
from tests.algos.offline_parity import making
from tests.algos.ppo_train_parity import running
from tests.algos.ppo_train_runs import make, quiet, weights  # noqa: F401

# --- the loss ---------------------------------------------------------------------------------


def test_losses_by_hand() -> None:
    """Responses of 2 and 1 tokens in frames of 2: two states each, as the first fills its frame."""
    responses = Responses.of([[5], [6]], [[7, 8], [9]], 2, torch.device("cpu"))
    args = SimpleNamespace(cliprange=0.2, cliprange_value=0.5, vf_coef=0.1)
    new = torch.log(torch.tensor([[1.5, 0.5], [1.1, 1.0]]))
    loss, found = clipped_losses(
        args,  # type: ignore[arg-type]
        responses,
        logp=new,
        values=torch.tensor([[1.0, 0.0], [2.0, 0.0]]),
        old_logp=torch.zeros(2, 2),
        old_values=torch.zeros(2, 2),
        advantages=torch.tensor([[1.0, -2.0], [-1.0, 0.0]]),
        returns=torch.tensor([[3.0, 1.0], [0.0, 0.0]]),
    )
    # Tokens: max(-1.5, -1.2), max(2 · 0.5, 2 · 0.8), max(1.1, 1.1).
    assert found["loss/policy_avg"] == pytest.approx((-1.2 + 1.6 + 1.1) / 3)
    # States: clipped to 0.5: max(4, 6.25), max(1, 1), max(4, 0.25), max(0, 0).
    assert found["loss/value_avg"] == pytest.approx(0.5 * (6.25 + 1 + 4 + 0) / 4)
    assert loss == pytest.approx((1.5 / 3) + 0.1 * 0.5 * 11.25 / 4)
    assert found["policy/clipfrac_avg"] == pytest.approx(2 / 3)
    assert found["val/clipfrac_avg"] == pytest.approx(1 / 4)
    assert found["val/ratio"] == pytest.approx((1.5 + 0.5 + 1.1 + 1.0) / 4)
    squares = np.log([1.5, 0.5, 1.1]) ** 2
    assert found["policy/approxkl_avg"] == pytest.approx(0.5 * squares.sum() / 4)


def test_a_micro_batch_without_a_token_has_a_loss_on_the_graph() -> None:
    responses = Responses.of([[5]], [[]], 2, torch.device("cpu"))
    zeros = torch.zeros(1, 2)
    values = torch.ones(1, 2, requires_grad=True)
    loss, _ = clipped_losses(
        SimpleNamespace(cliprange=0.2, cliprange_value=9.0, vf_coef=1.0),  # type: ignore[arg-type]
        responses,
        logp=zeros.clone().requires_grad_(),
        values=values,
        old_logp=zeros,
        old_values=zeros,
        advantages=zeros,
        returns=zeros,
    )
    loss.backward()
    assert loss == 0.5
    assert values.grad is not None
    assert values.grad.tolist() == [[1.0, 0.0]]


# --- a batch ----------------------------------------------------------------------------------


class Counting(TrainerCallback):
    """Counts optimizer steps, by batch."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.steps.append(0)

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.steps[-1] += 1


class Watched(fastrl.PPOv2Trainer):
    """Keeps the rows of each micro-batch."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **keywords: Any) -> Any:
        ids = inputs["responses"].ids.tolist()
        vars(self).setdefault("seen", []).append([tuple(row) for row in ids])
        return super().compute_loss(model, inputs, *args, **keywords)


@pytest.mark.parametrize(("minis", "rows"), [(1, 12), (3, 12)])
def test_steps_of_a_batch(tmp_path: Path, monkeypatch: Any, minis: int, rows: int) -> None:
    """12 rows: three batches of 4, or one of 12, which is the last of the pass over the dataset."""
    monkeypatch.setattr("fastrl.algos.ppo_forms.PPOv2Trainer", Watched)
    counting = Counting()
    trainer = make(tmp_path, rows, num_mini_batches=minis, num_train_epochs=1, callbacks=[counting])
    trainer.train()
    batches = rows // (4 * minis)
    assert trainer.state.global_step == trainer.args.num_total_batches == batches
    # Every pass over a batch is `minis` steps of two micro-batches, on the last batch as well.
    assert counting.steps == [2 * minis] * batches
    assert len(trainer.seen) == batches * 2 * minis * 2
    each = 2 * minis * 2  # micro-batches of a batch
    for start in range(0, len(trainer.seen), each):
        times = Counter(row for micro in trainer.seen[start : start + each] for row in micro)
        assert set(times.values()) == {2} and len(times) == 4 * minis
    logs = [entry for entry in trainer.state.log_history if "objective/kl" in entry]
    assert [entry["episode"] for entry in logs] == [4 * minis * (i + 1) for i in range(batches)]


def test_runs_repeat_and_batches_differ(tmp_path: Path) -> None:
    runs = []
    for _ in range(2):
        trainer = make(tmp_path, rows=4, num_train_epochs=2)
        trainer.train()
        runs.append(weights(trainer))
    assert torch.equal(*runs)
    prompts = running.prompts(3)
    first = trainer._respond(trainer.model_wrapped, prompts, 1.0)
    assert first == trainer._respond(trainer.model_wrapped, prompts, 1.0)
    trainer.state.global_step += 1
    assert first != trainer._respond(trainer.model_wrapped, prompts, 1.0)


def test_logging_every_second_batch_logs_means_of_two(tmp_path: Path) -> None:
    logs = []
    for every in (1, 2):
        trainer = make(tmp_path, logging_steps=every, max_steps=2)
        trainer.train()
        logs.append([e for e in trainer.state.log_history if "objective/kl" in e])
    (one, two), (mean,) = logs
    for name in ("objective/scores", "loss/value_avg", "val/ratio", "loss"):
        assert mean[name] == pytest.approx((one[name] + two[name]) / 2), name
    assert (mean["episode"], mean["lr"]) == (8, two["lr"])


def test_max_grad_norm_clips(tmp_path: Path) -> None:
    """Under plain descent a step of a clipped gradient is no longer than norm · rate."""
    gone = []
    for norm in (0.0, 1e-3):
        trainer = make(tmp_path, max_grad_norm=norm, max_steps=1, optim="sgd", num_ppo_epochs=3)
        before = weights(trainer)
        trainer.train()
        gone.append((weights(trainer) - before).norm().item())
    assert gone[0] > 1e-4
    assert gone[1] <= 3 * 1e-3 * 1e-3 * 1.01


def test_a_nan_stops_before_it_reaches_a_weight(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    with torch.no_grad():
        trainer.model.value_model.score.weight[0, 0] = float("nan")
    before = weights(trainer)
    with pytest.raises(FloatingPointError, match="row 0: a value is not finite"):
        trainer.train()
    assert torch.equal(weights(trainer).nan_to_num(), before.nan_to_num())


def test_prompts_as_text_and_padded_by_a_collator_are_those_of_ids(tmp_path: Path) -> None:
    tokenizer = making.tokenizer()
    texts = ["abc", "a b, c?", "ABCD"]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    trainer = make(tmp_path, train_dataset=Dataset.from_dict({"prompt": texts * 2}))
    assert trainer.train_dataset["input_ids"][:3] == ids
    left = {"input_ids": torch.tensor([[0, 0, 7], [0, 5, 6]])}
    assert unpadded(left, 0) == [[7], [5, 6]]
    # With a mask a padding token may be part of a prompt.
    assert unpadded({**left, "attention_mask": torch.tensor([[0, 1, 1], [0, 1, 1]])}, 0) == [
        [0, 7],
        [5, 6],
    ]
    assert unpadded(padded_prompts([{"input_ids": row} for row in ids]), 0) == ids
    with pytest.raises(ValueError, match="prompt 1 of a batch is padding alone"):
        unpadded({"input_ids": torch.tensor([[7], [0]])}, 0)


# --- samples, evaluation, files -------------------------------------------------------------------


@pytest.mark.slow
def test_samples_and_evaluation_leave_training_as_it_is(tmp_path: Path) -> None:
    held_out = Dataset.from_dict({"input_ids": running.prompts(15)[12:]})
    shown = {
        "eval_dataset": held_out,
        "num_sample_generations": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    ends = []
    for extra in ({}, shown):
        trainer = make(tmp_path / str(len(ends)), num_train_epochs=1, **extra)
        trainer.train()
        ends.append(weights(trainer))
    assert torch.equal(*ends)
    lines = (tmp_path / "1" / "completions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [1, 1, 2, 2, 3, 3]  # two of the three prompts
    assert set(rows[0]) == {"step", "query", "model response", "score"}
    logged = [e for e in trainer.state.log_history if "eval_objective/scores" in e]
    found = trainer.evaluate()
    assert [entry["step"] for entry in logged] == [2, 3]
    assert found["eval_objective/scores"] == logged[-1]["eval_objective/scores"]
    several = trainer.evaluate({"some": held_out, "one": held_out.select([0])})
    assert several["eval_some_objective/scores"] == found["eval_objective/scores"]


@pytest.mark.slow
def test_a_run_resumes_to_the_bit(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "num_mini_batches": 2, "max_steps": 3}
    whole = make(tmp_path, **settings)
    whole.train()
    resumed = make(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.state.global_step == 3
    assert torch.equal(weights(whole), weights(resumed))
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if "objective/kl" in row] == [1, 2, 3]
    assert "PPO" in (tmp_path / "README.md").read_text()

    whole.save_model(str(tmp_path / "end"))
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "end")
    for name, tensor in whole.model.policy.state_dict().items():
        assert torch.equal(policy.state_dict()[name], tensor), name
    assert not (tmp_path / "end" / "value_model").exists()
    for file in (tmp_path / "checkpoint-2" / "value_model").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match=r"found no weights in .*value_model"):
        make(tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_an_adapter_that_is_the_reference_steps_back(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    policy = get_peft_model(making.model("qwen2"), lora)
    policy.add_adapter("old", lora)
    for name, parameter in policy.named_parameters():
        if "lora_B.old" in name:
            torch.nn.init.ones_(parameter)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    responses = Responses.of([[5, 6]], [[7, 8]], 2, torch.device("cpu"))
    found = {}
    for ref in (None, "old"):
        trainer = make(tmp_path, model=policy, ref_model=None, ref_adapter_name=ref, max_steps=1)
        assert trainer.ref_model is None
        found[ref] = trainer._reference_logp(trainer.model_wrapped, responses)
    assert policy.active_adapter == "default"
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == trained
    with policy.disable_adapter():
        plain = policy(torch.tensor([[5, 6, 7, 8]])).logits
    want = (plain / trainer.args.temperature).log_softmax(-1)
    want = want[0, [1, 2], [7, 8]]
    torch.testing.assert_close(found[None][0], want.detach(), rtol=1e-4, atol=1e-5)
    assert (found["old"] - found[None]).abs().max() > 1e-3
    make(tmp_path, model=policy, ref_model=None, model_adapter_name="old", max_steps=1)
    assert policy.active_adapter == "old"
    assert all("old" in name for name, p in policy.named_parameters() if p.requires_grad)
