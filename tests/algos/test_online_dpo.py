"""Online DPO: TRL's numbers, losses by hand, pairs that stay together, and what is refused."""

from __future__ import annotations

import dataclasses
import inspect
import math
import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

from fastrl import OnlineDPOConfig, OnlineDPOTrainer
from fastrl.algos.dpo_losses import LOSSES
from fastrl.algos.online_dpo import by_reward, preferences
from fastrl.rewards.judges import BasePairwiseJudge
from tests import two_ranks
from tests.algos.offline_parity.making import model, tokenizer
from tests.algos.online_dpo_parity import cases, ranks, running

BY_NAME = {case.name: case for case in cases.ALL}
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
PROMPTS = ["abc", "hello", "9 + 3 is", "xy", "the end of", "q", "so", "what is"]


def vowels(completions, **_):
    """The share of vowels."""
    return [sum(c in "aeiou" for c in text) / max(len(text), 1) for text in completions]


def settings(folder, **given):
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_new_tokens": 6,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        **given,
    }


def trainer_of(folder, rewards=vowels, rows=PROMPTS, more=None, **given):
    return OnlineDPOTrainer(
        model(),
        reward_funcs=rewards,
        args=OnlineDPOConfig(**settings(folder, **given)),
        train_dataset=Dataset.from_dict({"prompt": rows}),
        processing_class=tokenizer(),
        **(more or {}),
    )


def column(trainer, key):
    return [row[key] for row in trainer.state.log_history if key in row]


def run(case, **given):
    return running.run(case, OnlineDPOTrainer, OnlineDPOConfig, shuffle_dataset=False, **given)


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


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss_type": "hinge"}, "loss_type='hinge' is none of sigmoid, ipo"),
        ({"beta": 0.0}, "beta must be positive"),
        ({"beta": []}, r"beta must be positive.*got \[\]"),
        ({"beta": [0.1, -1.0]}, "beta must be positive"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more"),
        ({"max_length": 1}, "max_length must leave room for 2"),
        ({"missing_eos_penalty": -1.0}, "missing_eos_penalty .* must be positive"),
        ({"steps_per_generation": 0}, "steps_per_generation must be 1 or more"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"vllm_mode": "remote"}, "vllm_mode='remote' is none of colocate, server"),
    ],
)
def test_a_config_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        OnlineDPOConfig("out", use_cpu=True, **given)


@pytest.mark.parametrize(
    "name", ["num_generations", "num_iterations", "epsilon", "max_completion_length"]
)
def test_a_config_has_no_field_that_would_do_nothing(name):
    with pytest.raises(TypeError, match=name):
        OnlineDPOConfig("out", use_cpu=True, **{name: 4})


def test_a_config_warns_where_no_prompt_would_be_left():
    with pytest.warns(UserWarning, match="max_new_tokens=512 is no less than max_length=512"):
        OnlineDPOConfig("out", use_cpu=True, max_new_tokens=512)


def test_batch_sizes_count_prompts():
    args = OnlineDPOConfig(
        "out", use_cpu=True, per_device_train_batch_size=3, gradient_accumulation_steps=4
    )
    assert (args.generation_batch_size, args.steps_per_generation) == (24, 4)
    assert args.beta == 0.1 and dataclasses.replace(args, beta=[0.1, 0.2]).beta == [0.1, 0.2]


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ({"data_collator": lambda rows: rows}, ValueError, "data_collator has no part"),
        ({"compute_metrics": lambda _: {}}, ValueError, "compute_metrics has no part"),
        ({"preprocess_logits_for_metrics": max}, ValueError, "preprocess_logits_for_metrics has"),
        ({"judge": object()}, ValueError, "reward_funcs is of rewards, and a judge gives none"),
        ({"ref_model": "somewhere"}, TypeError, "ref_model must be a model, got str"),
    ],
)
def test_arguments_that_are_refused(tmp_path, more, kind, message):
    with pytest.raises(kind, match=message):
        trainer_of(tmp_path, more=more)


def test_the_model_is_not_its_own_reference(tmp_path):
    from peft import LoraConfig

    policy = model()
    with pytest.raises(ValueError, match="ref_model is the object given as model"):
        OnlineDPOTrainer(
            policy,
            policy,
            vowels,
            OnlineDPOConfig(**settings(tmp_path)),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
            processing_class=tokenizer(),
            peft_config=LoraConfig(target_modules=["q_proj"]),
        )
    assert not any("lora" in name for name, _ in policy.named_parameters())


def test_rewards_are_required(tmp_path):
    with pytest.raises(ValueError, match="reward_funcs"):
        trainer_of(tmp_path, None)


# --- a judge -------------------------------------------------------------------------------------


class Vowels(BasePairwiseJudge):
    """Prefers the share of vowels, the first of equal ones; keeps what it was asked."""

    def __init__(self, fails=()):
        self.asked = []
        self.fails = fails

    def judge(self, prompts, completions, shuffle_order=True):
        places = []
        for prompt, (first, second) in zip(prompts, completions, strict=True):
            self.asked.append((prompt, first, second))
            one, other = vowels([first, second])
            places.append(-1 if prompt in self.fails else int(other > one))
        return places


def judged(judge):
    """The trainer's class, given a judge in the place of reward functions."""

    class Judged(OnlineDPOTrainer):
        def __init__(self, reward_funcs=None, **given):
            super().__init__(judge=judge, **given)

    return Judged


@pytest.mark.parametrize("name", ["default", "chat"])
def test_a_judge_chooses_as_rewards_do(monkeypatch, name):
    """Of rewards these numbers are TRL's; of its judges (TRL <= 0.28) the same pairs are."""

    def text_vowels(completions, **_):
        flat = [c if isinstance(c, str) else "Assistant: " + c[0]["content"] for c in completions]
        return vowels(flat)

    monkeypatch.setitem(running.making.REWARDS, "text_vowels", text_vowels)
    case = dataclasses.replace(BY_NAME[name], rewards=("text_vowels",))
    want = run(case)
    scores = {"objective/rlhf_reward", "objective/scores", "objective/scores_margin"}
    monkeypatch.setattr(running, "METRICS", [m for m in running.METRICS if m not in scores])
    judge = Vowels()
    got = running.run(case, judged(judge), OnlineDPOConfig, shuffle_dataset=False)
    assert running.differences(got, {key: want[key] for key in got}) == []
    assert len(judge.asked) == 8 * 4
    if name == "chat":
        prompt, first, _ = judge.asked[0]
        assert prompt.startswith("User: ") and first.startswith("Assistant: ")


def test_a_judges_run_logs_no_scores_and_learns(tmp_path):
    judge = Vowels()
    trainer = trainer_of(tmp_path, None, more={"judge": judge}, max_steps=2)
    trainer.train()
    assert trainer.judge is judge and trainer.reward_func_names == ["Vowels"]
    first = trainer.state.log_history[0]
    assert not [key for key in first if key.startswith("objective/") and "score" in key[10:16]]
    assert "objective/rlhf_reward" not in first and first["rewards/Vowels/mean"] == 0.5
    assert {prompt for prompt, *_ in judge.asked} == set(PROMPTS)


def test_a_pair_that_the_judge_fails_on_is_left_out(tmp_path):
    judge = Vowels(fails=set(PROMPTS) - {"abc"})
    trainer = trainer_of(tmp_path, None, more={"judge": judge}, max_steps=4)
    trainer.train()
    losses = sorted(column(trainer, "loss"))
    assert losses[:2] == [0.0, 0.0] and losses[2] > 0.2  # two steps of two epochs have abc


def test_verdicts_that_are_none_are_refused(tmp_path):
    for verdict in (2, 0.7):
        wrong = SimpleNamespace(judge=lambda prompts, pairs, v=verdict: [v] * len(pairs))
        with pytest.raises(ValueError, match=r"must give 0, 1 or -1 for each of \d pairs"):
            trainer_of(tmp_path, None, more={"judge": wrong}).train()


@pytest.mark.parametrize(
    ("given", "more", "kind", "message"),
    [
        ({}, {"judge": object()}, TypeError, "judge must have a method judge"),
        ({"missing_eos_penalty": 1.0}, {}, ValueError, "missing_eos_penalty is of rewards"),
        ({"reward_weights": [2.0]}, {}, ValueError, "reward_weights is of rewards"),
        ({"reward_model_path": "there"}, {}, ValueError, "reward_funcs is of rewards"),
    ],
)
def test_settings_of_rewards_beside_a_judge_are_refused(tmp_path, given, more, kind, message):
    with pytest.raises(kind, match=message):
        trainer_of(tmp_path, None, more={"judge": Vowels(), **more}, **given)


def test_a_judge_at_its_old_place(tmp_path):
    judge = Vowels()
    args = OnlineDPOConfig(**settings(tmp_path))
    rows = Dataset.from_dict({"prompt": PROMPTS})
    with pytest.warns(FutureWarning, match="order has changed"):
        trainer = OnlineDPOTrainer(
            model(), model(), None, judge, args, None, rows, None, tokenizer()
        )
    assert trainer.judge is judge and trainer.args is args


# --- older calls ---------------------------------------------------------------------------------


def test_called_as_in_0_11(tmp_path):
    args = OnlineDPOConfig(**settings(tmp_path, max_steps=1))
    rows, score = Dataset.from_dict({"prompt": PROMPTS}), model("llama", "score")
    score.config._name_or_path = "judge"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = OnlineDPOTrainer(
            model(),
            reward_model=score,
            reward_processing_class=tokenizer(),
            args=args,
            judge=None,
            train_dataset=rows,
            tokenizer=tokenizer(),
        )
    (told,) = [str(w.message) for w in caught if "old spellings" in str(w.message)]
    assert "reward_model= is reward_funcs=" in told
    assert "reward_processing_class= is reward_processing_classes=" in told
    trainer.train()
    assert trainer.reward_func_names == ["judge"] and trainer._api_generation == "0.11"


def test_called_in_the_order_of_0_11(tmp_path):
    args = OnlineDPOConfig(**settings(tmp_path))
    rows = Dataset.from_dict({"prompt": PROMPTS})
    with pytest.warns(FutureWarning, match="order has changed"):
        trainer = OnlineDPOTrainer(
            model(), model(), vowels, None, args, None, rows, None, tokenizer()
        )
    assert trainer.args is args and trainer.reward_func_names == ["vowels"]


# --- two ranks -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("given", [{}, {"balance_ranks": True}], ids=["", "balanced"])
def test_two_ranks_of_two_prompts_are_one_of_four(tmp_path, given):
    said = two_ranks.start(ranks.__file__, tmp_path, *given)
    assert (tmp_path / "logs.json").exists(), said
    assert running.differences(ranks.read(tmp_path), ranks.run(tmp_path / "one", 1, {})) == []
