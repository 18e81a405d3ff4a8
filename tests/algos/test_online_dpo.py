"""Online DPO: TRL's numbers, losses by hand, pairs that stay together, the trainer, two ranks."""

from __future__ import annotations

import dataclasses
import inspect
import math
import shutil

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

from fastrl import OnlineDPOConfig, OnlineDPOTrainer
from fastrl.algos.dpo_losses import LOSSES
from fastrl.algos.online_dpo import by_reward, preferences
from tests import two_ranks
from tests.algos.offline_parity.making import model, tokenizer
from tests.algos.online_dpo_parity import cases, ranks, running
from tests.algos.online_dpo_runs import BY_NAME, column, run, settings, trainer_of, vowels

QUICK = {"default", "whole", "ipo", "penalty", "ties", "cut", "accumulation", "lora_given", "chat"}
# Fields of the other online trainers that mean the same here.
OURS = {
    "balance_ranks", "chat_template_kwargs", "dynamic_sampling", "dynamic_sampling_rounds",
    "log_completions", "log_multimodal", "log_unique_prompts", "num_completions_to_print",
    "pad_to_multiple_of", "ref_model_mixup_alpha", "ref_model_sync_steps", "reward_timeout",
    "router_aux_loss_coef", "shuffle_dataset", "steps_per_generation", "sync_ref_model",
    "transformers_continuous_batching_config", "use_transformers_continuous_batching",
    "use_transformers_paged", "vllm_max_model_length",
}  # fmt: skip

# --- TRL's numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[] if case.name in QUICK else pytest.mark.slow)
        for case in cases.ALL
    ],
)
def test_logs_what_trl_logs(case):
    different = running.differences(run(case), running.recorded()["cases"][case.name])
    assert not different, "\n" + "\n".join(different)


@pytest.mark.parametrize("key", running.METRICS)
def test_the_judge_sees_one_number_that_is_off(key):
    want = running.recorded()["cases"]["default"]
    got = {name: list(values) for name, values in want.items()}
    assert running.differences(got, want) == []
    got[key][5] += 2e-4 * max(abs(got[key][5]), 0.1)
    assert [line.split(" at ")[0] for line in running.differences(got, want)] == [key]


def test_fields_and_defaults_are_trls():
    ours = {}
    for f in dataclasses.fields(OnlineDPOConfig):
        if f.init:
            made = f.default is dataclasses.MISSING
            ours[f.name] = f.default_factory() if made else f.default
            assert f.metadata.get("help") or f.name in TrainingArguments.__dataclass_fields__
    theirs = running.recorded()["fields"]
    assert {name: ours.get(name, "absent") for name in theirs} == theirs
    assert ours.keys() - TrainingArguments.__dataclass_fields__.keys() - theirs.keys() == OURS


def test_arguments_are_trls():
    parameters = inspect.signature(OnlineDPOTrainer.__init__).parameters
    assert list(parameters)[1:] == [*running.recorded()["arguments"], "judge"]


# --- the loss ------------------------------------------------------------------------------------


def test_higher_reward_is_chosen_and_the_first_of_equal_ones():
    rewards = torch.tensor([0.0, 1.0, 2.0, 2.0, 3.0, -1.0])
    chosen, rejected = by_reward(torch.arange(6.0), rewards)
    assert chosen.tolist() == [1.0, 2.0, 4.0] and rejected.tolist() == [0.0, 3.0, 5.0]


@pytest.mark.parametrize(
    ("loss", "expected"),
    # Δ = (-2 + 1) - (-1 + 1.5) = -1.5 for the first pair, (-4 + 4) - (-3 + 5) = -2 for the second
    [
        ("sigmoid", [math.log(1 + math.exp(0.15)), math.log(1 + math.exp(0.2))]),
        ("ipo", [(-1.5 - 5) ** 2, (-2 - 5) ** 2]),
    ],
)
def test_losses_by_hand(loss, expected):
    logp, ref = torch.tensor([-1.0, -2.0, -4.0, -3.0]), torch.tensor([-1.5, -1.0, -4.0, -5.0])
    pairs = preferences(logp, ref, torch.tensor([0.0, 1.0, 5.0, 5.0]), beta=0.1)
    assert LOSSES[loss](pairs).tolist() == pytest.approx(expected, rel=1e-5)


def test_beta_is_that_of_the_epoch_and_the_last_one_afterwards(tmp_path):
    trainer = trainer_of(tmp_path, beta=[0.5, 0.2, 0.1], max_steps=8)
    trainer.train()
    assert column(trainer, "beta") == [0.5, 0.5, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1]
    # The first loss is that of equal policies whatever beta is; the logs of rewards know it.
    assert column(trainer, "loss")[0] == pytest.approx(math.log(2), rel=1e-4)


def test_a_pair_with_an_answer_that_nobody_judges_is_left_out():
    def some(completion_ids, number, **_):
        known = [n % 3 > 0 or sum(ids) % 2 for n, ids in zip(number, completion_ids, strict=True)]
        scores = [float(sum(ids) % 7) for ids in completion_ids]
        return [s if k else None for s, k in zip(scores, known, strict=True)]

    judged = []

    class Kept(OnlineDPOTrainer):
        def experience(self, answers, scores):
            found = super().experience(answers, scores)
            judged.append(~found.tensors["rewards"].view(-1, 2).isnan().any(1))
            logp = self.old_logprobs(answers).sum(1)
            chosen, _ = by_reward(logp, found.tensors["rewards"])
            seen.append(float(chosen[judged[-1]].mean()))
            return found

    seen = []
    running.making.REWARDS["some"] = some
    case = dataclasses.replace(BY_NAME["default"], rewards=("some",))
    logs = running.run(case, Kept, OnlineDPOConfig, shuffle_dataset=False)
    shares = [float(which.float().mean()) for which in judged]
    assert 0 < sum(shares) < len(shares)
    assert logs["logps/chosen"] == pytest.approx(seen, rel=1e-4)
    assert logs["loss"][0] == pytest.approx(math.log(2), rel=1e-4)  # not a share of it


def test_pairs_of_which_one_answer_is_judged_teach_nothing(tmp_path):
    def first_alone(completions, **_):
        return [i if i % 2 == 0 else None for i in range(len(completions))]

    trainer = trainer_of(tmp_path, first_alone)
    trainer.train()
    assert column(trainer, "loss") == [0.0] * 4 and column(trainer, "grad_norm") == [0.0] * 4


# --- batches -------------------------------------------------------------------------------------


def test_accumulated_batches_are_one_large_batch():
    large = run(BY_NAME["default"], per_device_train_batch_size=8)
    small = run(BY_NAME["default"], per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert running.differences(small, large) == []


def test_a_pair_stays_in_one_pass(tmp_path):
    seen = []

    class Watched(OnlineDPOTrainer):
        def compute_loss(self, model, inputs, *more, **others):
            seen.append([row[row != 0].tolist() for row in inputs["prompt_ids"]])
            return super().compute_loss(model, inputs, *more, **others)

    rows = ["abcdefgh" * 8, "a", "b", "c", "abc", "abc", "abc", "d"]  # one heavy, three alike
    trainer = Watched(
        model(),
        reward_funcs=vowels,
        args=OnlineDPOConfig(**settings(tmp_path, gradient_accumulation_steps=4, max_steps=2)),
        train_dataset=Dataset.from_dict({"prompt": rows}),
        processing_class=tokenizer(),
    )
    trainer.train()
    assert len(seen) == 8 and sum(map(len, seen)) == 32
    for rows in seen:
        assert len(rows) % 2 == 0 and rows[0::2] == rows[1::2]


def test_prompts_are_cut_for_computing_by_their_own_pair(tmp_path):
    lengths = []

    class Watched(OnlineDPOTrainer):
        def experience(self, answers, scores):
            rows = zip(answers.prompt_lengths, answers.completion_lengths, strict=True)
            lengths.extend(rows)
            return super().experience(answers, scores)

    told = []

    def asked(prompts, completions, **_):
        told.extend(prompts)
        return [float(i) for i in range(len(prompts))]

    trainer = Watched(
        model(),
        reward_funcs=asked,
        args=OnlineDPOConfig(**settings(tmp_path, max_length=14, max_steps=2)),
        train_dataset=Dataset.from_dict({"prompt": ["x" * n for n in (3, 7, 12, 40)]}),
        processing_class=tokenizer(),
    )
    trainer.train()
    for row, prompt in enumerate(told):
        longest = max(lengths[row][1], lengths[row ^ 1][1])
        assert lengths[row][0] == min(len(prompt), 14 - longest)
    assert {len(prompt) for prompt in told} == {3, 7, 12, 40}


# --- the trainer ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_engine_draws_and_the_model_learns(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=40, learning_rate=1e-2)
    trainer.train()
    scores = column(trainer, "objective/scores")
    assert len(scores) == 40
    assert sum(scores[-5:]) / 5 > sum(scores[:5]) / 5 + 0.2


def test_evaluation_draws_pairs_too(tmp_path):
    counted = []

    def judge(prompts, completions, **_):
        counted.append(prompts)
        return vowels(completions)

    held_out = {"eval_dataset": Dataset.from_dict({"prompt": ["one", "two", "three"]})}
    given = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 3}
    trainer = trainer_of(tmp_path, judge, more=held_out, max_steps=2, **given)
    trainer.train()
    assert counted[-1][0::2] == counted[-1][1::2]
    assert sorted(counted[-1][0::2]) == ["one", "three", "two"]
    (row,) = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert row["eval_loss"] > 0 and row["eval_objective/kl"] != 0 and row["eval_beta"] == 0.1


def test_resumed_ends_in_the_weights_of_the_uninterrupted_run(tmp_path):
    given = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    whole = trainer_of(tmp_path / "whole", **given)
    whole.train()
    part = trainer_of(tmp_path / "part", **given)
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "part" / "checkpoint-3")
    part.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-3"))
    other = dict(part.model.named_parameters())
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, other[name]), name


def test_dull_prompts_are_drawn_anew_and_completions_are_kept(tmp_path):
    def judge(prompts, completion_ids, **_):
        """Answers to the prompt `q` always tie."""
        return [0.0 if p == "q" else float(i) for i, p in enumerate(prompts)]

    given = {"dynamic_sampling": True, "dynamic_sampling_rounds": 20, "log_completions": True}
    trainer = trainer_of(tmp_path, judge, ["q", "q", "q", "abc"], max_steps=1, **given)
    trainer.train()
    import pandas as pd

    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert table["prompt"].tolist() == ["abc"] * 8
    # Adjacent answers get neighbouring numbers: one is better than the other by 1.
    assert table["advantage"].tolist() == pytest.approx([-1.0, 1.0] * 4)


def test_the_reference_follows_if_asked(tmp_path):
    given = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 1.0}
    trainer = trainer_of(tmp_path, max_steps=2, learning_rate=1e-2, **given)
    before = [p.clone() for p in trainer.ref_model.parameters()]
    trainer.train()
    after = list(trainer.ref_model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for own, ref in zip(trainer.model.parameters(), after, strict=True):
        assert torch.equal(own, ref)


def test_reward_model_path_is_the_reward_where_none_is_given(tmp_path):
    score = model("llama", "score")
    score.save_pretrained(tmp_path / "judge")
    tokenizer().save_pretrained(tmp_path / "judge")
    path = str(tmp_path / "judge")
    trainer = trainer_of(tmp_path, None, max_steps=1, reward_model_path=path)
    trainer.train()
    assert trainer.reward_func_names == ["judge"] and column(trainer, "objective/scores")


# --- two ranks -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("given", [{}, {"balance_ranks": True}], ids=["", "balanced"])
def test_two_ranks_of_two_prompts_are_one_of_four(tmp_path, given):
    said = two_ranks.start(ranks.__file__, tmp_path, *given)
    assert (tmp_path / "logs.json").exists(), said
    assert running.differences(ranks.read(tmp_path), ranks.run(tmp_path / "one", 1, {})) == []
