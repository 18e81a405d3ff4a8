"""GRPO whose answers come of tools, environments or vLLM."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from tool_cases import END, Counter, Writer, add, call, chat_tokenizer, user

from fastrl import GRPOConfig, GRPOTrainer
from fastrl.rollout import Completion
from fastrl.train.drawing import InProcess


def config(folder, **given):
    return GRPOConfig(
        str(folder),
        **{
            "per_device_train_batch_size": 4,
            "num_generations": 2,
            "max_completion_length": 400,
            "max_steps": 1,
            "logging_steps": 1,
            "use_cpu": True,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            **given,
        },
    )


@pytest.fixture
def scripted(monkeypatch):
    """scripted(tokenizer, scripts): the engine writes what the scripts of two rows each say."""

    def install(tokenizer, scripts):
        writers = [Writer(tokenizer, scripts) for _ in range(2)]

        def answers(self, requests):
            found = []
            for request in requests:
                # Equal prompts come in one request; afterwards each row has one of its own.
                limits = zip(writers, request.limits, strict=False)
                if len(request.limits) == 1:
                    limits = [
                        (min(writers, key=lambda w: sum(w.rounds.values())), request.limits[0])
                    ]
                found.append(
                    tuple(
                        Completion(tuple(write(request.prompt_ids, n)), None, None, "eos")
                        for write, n in limits
                    )
                )
            return found

        monkeypatch.setattr(InProcess, "answers", answers)

    return install


def logged(trainer):
    (row,) = [row for row in trainer.state.log_history if "reward" in row]
    return row


def test_the_results_of_tools_are_not_learnt(tmp_path, tiny, scripted):
    tokenizer = chat_tokenizer()
    asking = "Let me see." + call("add", a=1, b=2) + END
    scripted(tokenizer, {"sum": [asking, "It is 3." + END], "none": ["Nothing." + END]})
    policy = tiny("qwen2", vocab_size=len(tokenizer), max_position_embeddings=1024)
    seen = {}

    def judge(completions, **_):
        seen["roles"] = [[m["role"] for m in messages] for messages in completions]
        seen["result"] = [m["content"] for ms in completions for m in ms if m["role"] == "tool"]
        return [float(i) for i in range(len(completions))]

    trainer = GRPOTrainer(
        policy,
        judge,
        config(tmp_path, shuffle_dataset=False),
        Dataset.from_dict({"prompt": [user("sum"), user("none")]}),
        processing_class=tokenizer,
        tools=[add],
    )
    losses = {}
    compute = trainer.compute_loss

    def spy(model, inputs, *args, **keywords):
        losses["mask"] = inputs["completion_mask"] * inputs["tool_mask"]
        losses["ids"] = inputs["completion_ids"]
        return compute(model, inputs, *args, **keywords)

    trainer.compute_loss = spy
    trainer.train()
    assert seen["roles"] == [["assistant", "tool", "assistant"]] * 2 + [["assistant"]] * 2
    assert seen["result"] == ["3", "3"]
    learnt = [
        tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(losses["ids"], losses["mask"], strict=True)
    ]
    assert sorted(learnt) == sorted([asking + "It is 3." + END] * 2 + ["Nothing." + END] * 2)
    row = logged(trainer)
    assert row["tools/call_frequency"] == 0.5 and row["tools/failure_frequency"] == 0
    written = [len(tokenizer(text)["input_ids"]) for text in learnt]
    assert row["completions/mean_length"] == sum(written) / 4


def test_an_environment_brings_prompt_tools_and_reward(tmp_path, tiny, scripted):
    tokenizer = chat_tokenizer()
    scripted(tokenizer, {"counts": [call("count", by=5) + END, "Five." + END]})
    policy = tiny("qwen2", vocab_size=len(tokenizer), max_position_embeddings=1024)
    trainer = GRPOTrainer(
        policy,
        None,
        config(tmp_path, per_device_train_batch_size=2, max_tool_calling_iterations=3),
        Dataset.from_dict({"prompt": [user("counts")], "goal": [5]}),
        processing_class=tokenizer,
        environment_factory=Counter,
    )
    trainer.train()
    row = logged(trainer)
    assert row["rewards/Counter/mean"] == 1.0
    assert row["tools/call_frequency"] == 1.0


def test_vllm_draws_with_the_present_weights_and_is_corrected_for(
    tmp_path, tiny, fake_vllm, tokenizer
):
    vllm = fake_vllm()
    tiny("qwen2", tie_word_embeddings=False).save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    heads = []

    def judge(completions, **_):
        heads.append(vllm.LLM.made[-1].weights["lm_head.weight"].clone())
        return [float(i % 2) for i in range(len(completions))]

    trainer = GRPOTrainer(
        str(tmp_path / "policy"),
        judge,
        config(
            tmp_path,
            use_vllm=True,
            max_completion_length=4,
            max_steps=2,
            learning_rate=1e-2,
            vllm_importance_sampling_mode="token_truncate",
        ),
        Dataset.from_dict({"prompt": ["!", '"', "#", "$"]}),
    )
    start = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    assert torch.equal(heads[0], start)
    assert not torch.equal(heads[1], start)
    assert not torch.equal(heads[1], trainer.model.lm_head.weight)  # which moved once more
    rows = [row for row in trainer.state.log_history if "reward" in row]
    assert all(row["sampling/sampling_logp_difference/mean"] > 0 for row in rows)
    assert all(row["sampling/importance_sampling_ratio/max"] <= 3.0 for row in rows)
