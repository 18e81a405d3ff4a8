"""Online DPO by a judge: it chooses as rewards do, logs no scores, and what is refused."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from datasets import Dataset

from fastrl import OnlineDPOConfig, OnlineDPOTrainer
from fastrl.rewards.judges import BasePairwiseJudge
from tests.algos.offline_parity.making import model, tokenizer
from tests.algos.online_dpo_parity import running
from tests.algos.online_dpo_runs import BY_NAME, PROMPTS, column, run, settings, trainer_of, vowels


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
