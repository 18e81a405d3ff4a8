"""Online trainers in this process: drawing, scoring, resuming, and what they log."""

from __future__ import annotations

import math
import shutil
import threading

import pytest
import torch
from datasets import Dataset

from fastrl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from tests.algos.offline_parity.making import model, tokenizer
from tests.train.online_runs import PROMPTS, arguments, grpo, losses, same, trained, vowels, weights


def test_the_engine_draws_and_the_model_learns(tmp_path):
    trainer = grpo(tmp_path, max_steps=60, learning_rate=1e-2, beta=0.0)
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert len(rewards) == 60
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2


def test_a_run_is_repeated_by_its_seed_and_not_by_another(tmp_path):
    one, again, other = (losses(trained(grpo(tmp_path, seed=seed))) for seed in (1, 1, 2))
    assert one == again != other


def test_rewards_get_what_trl_gives_them(tmp_path):
    seen = []

    def judge(prompts, completions, completion_ids, number, trainer_state, log_extra, log_metric):
        log_extra("half", [n / 2 for n in number])
        log_metric("longest", max(map(len, completions)))
        seen.append((prompts, completions, completion_ids, number, trainer_state.global_step))
        return [float(n) + i for i, n in enumerate(number)]

    rows = Dataset.from_dict({"prompt": PROMPTS, "number": list(range(8))})
    config = GRPOConfig(**arguments(tmp_path, max_steps=1, log_completions=True))
    trainer = GRPOTrainer(model(), judge, config, rows, processing_class=tokenizer())
    trainer.train()
    ((prompts, completions, ids, number, step),) = seen
    assert step == 0 and len(prompts) == 8
    for start in (0, 4):  # groups of four
        assert len(set(prompts[start : start + 4])) == 1
        assert number[start] == PROMPTS.index(prompts[start])
    assert completions == tokenizer().batch_decode(ids, skip_special_tokens=True)
    (logged,) = [row for row in trainer.state.log_history if "longest" in row]
    assert logged["longest"] == max(map(len, completions))
    import pandas as pd

    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert table["half"].tolist() == [n / 2 for n in number]
    assert table["judge"].tolist() == [n + i for i, n in enumerate(number)]
    # By hand: group r = (n, n + 1, n + 2, n + 3) plus a constant: (r - mean) / (std + 1e-4)
    std = math.sqrt(5 / 3)
    expected = [(i - 1.5) / (std + 1e-4) for i in range(4)] * 2
    assert table["advantage"].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("given", [{}, {"num_iterations": 2}, {"steps_per_generation": 8}])
def test_resumed_ends_in_the_weights_of_the_uninterrupted_run(tmp_path, given):
    # The checkpoint lies within a generation batch, the steps after it in another epoch.
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 10, **given}
    whole = trained(grpo(tmp_path / "whole", **settings))
    part = grpo(tmp_path / "part", **settings)
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "part" / "checkpoint-3")
    part.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-3"))
    same(weights(whole), weights(part), rtol=0, atol=0)
    assert losses(whole)[3:] == losses(part)[3:]


def test_a_checkpoint_without_rollouts_begins_with_fresh_ones(tmp_path):
    trainer = grpo(tmp_path, save_strategy="steps", save_steps=2, max_steps=3)
    trainer.train()
    (tmp_path / "checkpoint-2" / "rollouts_0.pt").unlink()
    again = grpo(tmp_path, max_steps=3)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 3


def test_rows_regrouped_by_prompt_take_the_same_step(tmp_path, monkeypatch):
    """One pass of each slice as drawn, against passes that were put together by prompt."""
    given = {"beta": 0.1, "optim": "sgd", "learning_rate": 0.1}
    regrouped = trained(grpo(tmp_path, **given))
    monkeypatch.setattr(GRPOTrainer, "regroups", False)
    slices = trained(grpo(tmp_path, **given))
    same(weights(regrouped), weights(slices), rtol=1e-4, atol=1e-6)
    for one, other in zip(regrouped.state.log_history, slices.state.log_history, strict=True):
        for key, value in one.items():
            if not any(word in key for word in ("time", "runtime", "per_second")):
                assert other[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_dynamic_sampling_replaces_groups_that_teach_nothing(tmp_path):
    calls = []

    def only_long_prompts_differ(prompts, completions, **_):
        calls.append(list(prompts))
        return [i % 4 * (len(p) > 3) for i, p in enumerate(prompts)]

    trainer = grpo(
        tmp_path, only_long_prompts_differ, dynamic_sampling=True, dynamic_sampling_rounds=50
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert all(row["frac_reward_zero_std"] == 0 for row in logged)
    drawn = sum(len(prompts) for prompts in calls) / 4
    assert len(logged) == 4
    rates = [row["dynamic_sampling/acceptance_rate"] for row in logged]
    assert 0 < min(rates) < 1
    assert sum(2 / rate for rate in rates) == pytest.approx(drawn)  # 2 groups kept a step


def test_dynamic_sampling_gives_up_after_its_rounds(tmp_path):
    calls = []

    def flat(completions, **_):
        calls.append(len(completions))
        return [1.0] * len(completions)

    trainer = grpo(tmp_path, flat, dynamic_sampling=True, dynamic_sampling_rounds=3, max_steps=1)
    trainer.train()
    assert calls == [8] * 4
    (row,) = [row for row in trainer.state.log_history if "reward" in row]
    assert row["dynamic_sampling/acceptance_rate"] == 0 and row["frac_reward_zero_std"] == 1


def test_rewards_that_never_differ_are_said_once_with_advice(tmp_path):
    def flat(completions, **_):
        return [1.0] * len(completions)

    with pytest.warns(UserWarning, match="scored alike.*dynamic_sampling") as caught:
        grpo(tmp_path, flat, max_steps=14).train()
    assert sum("scored alike" in str(w.message) for w in caught) == 1


def test_evaluation_draws_its_own_number_of_answers(tmp_path):
    seen = []

    def judge(prompts, completions, **_):
        seen.append(len(prompts))
        return vowels(completions)

    trainer = grpo(
        tmp_path, judge, num_generations_eval=2, per_device_eval_batch_size=4, max_steps=1
    )
    found = trainer.evaluate(Dataset.from_dict({"prompt": PROMPTS[:4]}))
    assert seen == [4, 4]
    assert {"eval_loss", "eval_reward", "eval_entropy", "eval_completions/mean_length"} <= set(
        found | trainer.state.log_history[-1]
    )


def test_lora_is_trained_alone(tmp_path):
    from peft import LoraConfig

    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    trainer = grpo(tmp_path, beta=0.05, more={"peft_config": config})
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("lora_" in name for name in moved)


@pytest.mark.parametrize("head", [False, True])
def test_the_head_is_computed_in_fp32_where_that_is_asked(tmp_path, head):
    # bf16 weights: with a bf16 product log-probabilities of 80 tokens are off by some 1e-2.
    from fastrl.models.policy import logprobs
    from fastrl.types import Tokens

    policy = model("llama").to(torch.bfloat16)
    trainer = grpo(tmp_path, policy=policy, cast_lm_head_to_fp32=head)
    ids = torch.tensor([[7, 20, 33, 41, 12]])
    found = logprobs(trainer.model, Tokens(ids, [0], [5], [1]), fp32_head=trainer._fp32_head).logp[
        0
    ]
    with torch.no_grad():
        hidden = trainer.model.model(ids).last_hidden_state.float()
        logits = hidden @ trainer.model.lm_head.weight.float().T
    exact = logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    assert (torch.allclose(found, exact, atol=1e-5)) or not head
    assert trainer._fp32_head is head


def test_rollout_functions_bring_columns_for_rewards(tmp_path):
    def rollout(prompts, trainer):
        ids = trainer.processing_class(prompts)["input_ids"]
        answers = [[10 + i % 4, 11, 1] for i in range(len(prompts))]
        return {
            "prompt_ids": ids,
            "completion_ids": answers,
            "logprobs": None,
            "env_mask": [[1, 0, 1]] * len(prompts),
            "place": list(range(len(prompts))),
        }

    seen = []

    def judge(completions, place, **_):
        seen.append(place)
        return [float(p % 4) for p in place]

    trainer = grpo(tmp_path, judge, more={"rollout_func": rollout}, max_steps=1)
    trainer.train()
    assert seen == [list(range(8))]
    (row,) = [row for row in trainer.state.log_history if "reward" in row]
    assert row["completions/mean_length"] == 2  # the token in the middle is not the model's


def test_rloo_learns_and_takes_calls_of_before(tmp_path):
    with pytest.warns(FutureWarning, match=r"processing_class"):
        trainer = RLOOTrainer(
            config=RLOOConfig(**arguments(tmp_path, max_steps=40, learning_rate=1e-2, beta=0.0)),
            tokenizer=tokenizer(),
            policy=model(),
            reward_model=vowels,
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        )
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.15


def test_completions_are_sent_to_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    made = []

    class Scheduler:
        def __init__(self, **keywords):
            made.append(keywords)
            self.lock = threading.Lock()

    monkeypatch.setattr(huggingface_hub, "CommitScheduler", Scheduler)
    trainer = grpo(tmp_path, log_completions=True, log_completions_hub_repo="me/mine", max_steps=1)
    trainer.train()
    (keywords,) = made
    assert keywords["repo_id"] == "me/mine" and keywords["repo_type"] == "dataset"
    assert list(keywords["folder_path"].glob("*.parquet"))
