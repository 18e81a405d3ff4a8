"""Nash-MD: the loss by hand, whose answers are learnt, judges, what is refused."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from fastrl.algos.nash_md import NashMDTrainer, nash_md_loss
from fastrl.algos.nash_md_config import NashMDConfig
from fastrl.rewards.judges import BasePairwiseJudge
from tests import two_ranks
from tests.algos.offline_parity.making import model, tokenizer
from tests.algos.online_dpo_parity import ranks, running
from tests.algos.online_dpo_runs import PROMPTS, column, settings, vowels
from tests.algos.test_two_models import trainer_of

# --- the loss ------------------------------------------------------------------------------------


def test_the_loss_by_hand():
    """Ratios 0.5 and -1: 0.1 (0.5 · -1 + -1 · -2) - (0.8 - 0.5) · -3 = 0.15 + 0.9."""
    logp = torch.tensor([[-1.0, -2.0, 0.0]], requires_grad=True)
    ref = torch.tensor([[-1.5, -1.0, 0.0]])
    loss, score = nash_md_loss(logp, ref, torch.tensor([0.8]), beta=0.1)
    assert loss.tolist() == pytest.approx([1.05]) and score.tolist() == pytest.approx([-0.9])
    loss.sum().backward()
    assert logp.grad[0, :2].tolist() == pytest.approx([0.05 - 0.3, -0.1 - 0.3])


def likeliest(policy, reference, prompt, share):
    """Six tokens by whole rows of the mixture."""
    ids = tokenizer()(prompt)["input_ids"]
    start = len(ids)
    for _ in range(6):
        with torch.no_grad():
            own, other = (
                m(input_ids=torch.tensor([ids])).logits[0, -1] for m in (policy, reference)
            )
        ids.append(int(((1 - share) * own + share * other).argmax()))
        if ids[-1] == 1:
            break
    return ids[start:]


def test_the_policy_answers_and_then_the_mixture_and_the_first_is_learnt(tmp_path):
    seen, learnt = [], []

    def judged(prompts, completion_ids, **_):
        seen.extend(zip(prompts, completion_ids, strict=True))
        return [float(sum(ids) % 7) for ids in completion_ids]

    class Watched(NashMDTrainer):
        def compute_loss(self, model, inputs, *more, **others):
            rows = zip(inputs["completion_ids"], inputs["completion_mask"].bool(), strict=True)
            learnt.extend(ids[mask].tolist() for ids, mask in rows)
            return super().compute_loss(model, inputs, *more, **others)

    reference = model("llama")
    for parameter in reference.parameters():
        parameter.data.mul_(1.7)
    given = {"mixture_coef": 0.75, "generation_kwargs": {"do_sample": False}, "max_steps": 1}
    trainer = Watched(
        model(),
        reference,
        judged,
        args=NashMDConfig(**settings(tmp_path, **given)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer(),
    )
    trainer.train()
    fresh = model().eval()
    for i, (prompt, ids) in enumerate(seen):
        other = reference if i % 2 else fresh
        assert list(ids) == likeliest(fresh, other, prompt, 0.75), i
    assert [ids for _, ids in seen[0::2]] != [ids for _, ids in seen[1::2]]
    assert sorted(learnt) == sorted(list(ids) for _, ids in seen[0::2])


def test_one_prompt_in_all_slices(tmp_path):
    trainer = trainer_of(
        "NashMD", tmp_path, rows=["abc"] * 8, per_device_train_batch_size=1, max_steps=2
    )
    trainer.train()
    assert len(column(trainer, "loss")) == 2


def test_evaluation_compares_too(tmp_path):
    held_out = {"eval_dataset": Dataset.from_dict({"prompt": ["one", "two", "three"]})}
    trainer = trainer_of("NashMD", tmp_path, more=held_out, per_device_eval_batch_size=3)
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(-found["eval_loss/score"], rel=1e-5)
    assert 0 < found["eval_rewards/probabilities"] < 1


# --- judges --------------------------------------------------------------------------------------


class Places(BasePairwiseJudge):
    """Says which is better, by the share of vowels; fails on some prompts."""

    def __init__(self, fails=()):
        self.fails = fails

    def judge(self, prompts, completions, shuffle_order=True):
        found = [vowels(pair) for pair in completions]
        return [
            -1 if prompt in self.fails else int(other > one)
            for prompt, (one, other) in zip(prompts, found, strict=True)
        ]


class Shares(BasePairwiseJudge):
    """Gives probabilities as told."""

    def __init__(self, *said):
        self.said = said

    def judge(self, prompts, completions, shuffle_order=True, return_scores=False):
        assert return_scores
        return list(self.said[: len(prompts)])


def test_a_judge_without_scores_says_one_or_none(tmp_path):
    trainer = trainer_of("NashMD", tmp_path, None, more={"judge": Places()}, max_steps=2)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["rewards/probabilities"] * 4 == int(first["rewards/probabilities"] * 4)
    assert "rewards/chosen" not in first and "rewards/rejected" not in first


def test_a_probability_weighs_the_answer(tmp_path):
    judge = Shares(0.75, 0.75, 0.75, 0.75)
    trainer = trainer_of("NashMD", tmp_path, None, more={"judge": judge}, max_steps=1)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["rewards/probabilities"] == 0.75
    # At the start the policy is its reference, so nothing pulls.
    assert first["loss"] == pytest.approx(-0.25 * first["logps/chosen"], rel=1e-5)


def test_a_pair_that_the_judge_fails_on_is_left_out(tmp_path):
    judge = Shares(-1, 0.75, -1, -1)
    given = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 1}
    trainer = trainer_of("NashMD", tmp_path, None, more={"judge": judge}, **given)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["rewards/probabilities"] == 0.75 and first["loss"] > 0


def test_probabilities_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Shares must give a probability, or -1, for each of 4"):
        trainer_of("NashMD", tmp_path, None, more={"judge": Shares(0.5, 1.5, 0.5, 0.5)}).train()


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mixture_coef": 1.5}, r"mixture_coef must be from 0 to 1, .* got 1\.5"),
        ({"mixture_coef": []}, r"mixture_coef must be from 0 to 1, .* got \[\]"),
        ({"mixture_coef": [0.5, -1]}, "mixture_coef must be from 0 to 1"),
        ({"beta": 0.0}, "beta must be positive"),
        ({"loss_type": "ipo"}, "loss_type='ipo' has no part in NashMDConfig"),
        ({"use_vllm": True}, "use_vllm=True has no part in NashMDConfig"),
    ],
)
def test_a_config_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        NashMDConfig("out", use_cpu=True, **given)


def test_what_a_trainer_refuses(tmp_path):
    with pytest.raises(ValueError, match="data_collator has no part in Nash-MD"):
        trainer_of("NashMD", tmp_path, more={"data_collator": list})
    with pytest.raises(ValueError, match="reward_funcs is of rewards, and a judge gives none"):
        trainer_of("NashMD", tmp_path, more={"judge": Places()})


# --- two ranks -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_ranks_of_two_prompts_are_one_of_four(tmp_path):
    said = two_ranks.start(ranks.__file__, tmp_path, "NashMD", "balance_ranks")
    assert (tmp_path / "logs.json").exists(), said
    alone = ranks.run(tmp_path / "one", 1, {}, "NashMD")
    assert running.differences(ranks.read(tmp_path), alone) == []
