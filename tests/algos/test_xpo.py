"""XPO: its two losses by hand, whose answers they are, judges, what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset

from fastrl.algos.xpo import XPOTrainer
from fastrl.algos.xpo_config import XPOConfig
from tests.algos.offline_parity.making import model, tokenizer
from tests.algos.online_dpo_runs import PROMPTS, column, settings
from tests.algos.online_parity.making import fill_adapters
from tests.algos.test_nash_md import Places, Shares, likeliest
from tests.algos.test_two_models import trainer_of

# --- the losses ----------------------------------------------------------------------------------


def test_the_first_losses_are_those_of_equal_policies(tmp_path):
    """Policy and reference are one at the start: log 2, or (1 / 2β)², and α log π(y_ref)."""
    trainer = trainer_of("XPO", tmp_path / "dpo", alpha=0.5, max_steps=1)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["loss/dpo"] == pytest.approx(math.log(2), rel=1e-5)
    # Chosen and rejected are both answers; `logps/*` count policy and reference.
    both = (first["logps/chosen"] + first["logps/rejected"]) / 4
    assert -first["objective/entropy"] == pytest.approx(both, rel=1e-5)
    assert first["loss"] == pytest.approx(first["loss/dpo"] + first["loss/xpo"], rel=1e-5)
    assert first["loss/xpo"] < 0.5 * -10  # of answers of six tokens among eighty
    ipo = trainer_of("XPO", tmp_path / "ipo", loss_type="ipo", alpha=0.0, beta=0.25, max_steps=1)
    ipo.train()
    assert column(ipo, "loss") == pytest.approx([4.0], rel=1e-5)


def test_exploring_pushes_off_what_the_reference_answers(tmp_path):
    """With ties and β near 0 nothing but α acts: what the reference says best becomes unlikely."""
    given = {"alpha": 1.0, "beta": 1e-6, "max_steps": 4, "learning_rate": 1e-2}
    given["generation_kwargs"] = {"do_sample": False}
    trainer = trainer_of(
        "XPO", tmp_path, lambda completions, **_: [0.0] * len(completions), **given
    )
    trainer.train()
    pushed = column(trainer, "loss/xpo")
    assert pushed[-1] < 1.3 * pushed[0] < 0


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_policy_answers_and_then_the_reference(tmp_path, lora):
    seen = []

    def judged(prompts, completion_ids, **_):
        seen.extend(zip(prompts, completion_ids, strict=True))
        return [float(sum(ids) % 7) for ids in completion_ids]

    more = {}
    policy, reference = model(), model("llama")
    for parameter in reference.parameters():
        parameter.data.mul_(1.7)
    if lora:
        from peft import LoraConfig

        more["peft_config"] = LoraConfig(target_modules=["q_proj", "up_proj"])
        reference = None
    given = {"generation_kwargs": {"do_sample": False}, "max_steps": 1}
    trainer = XPOTrainer(
        policy,
        reference,
        judged,
        args=XPOConfig(**settings(tmp_path, **given)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer(),
        **more,
    )
    if lora:
        fill_adapters(trainer.model)
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(20)
        ours = trainer.model.eval()
        expected = [likeliest(ours, ours, prompt, 0.0) for prompt in PROMPTS]
    trainer.train()
    plain = model().eval()
    policies = dict(zip(PROMPTS, expected, strict=True)) if lora else None
    for i, (prompt, ids) in enumerate(seen):
        if i % 2:
            other = plain if lora else reference
            assert list(ids) == likeliest(other, other, prompt, 0.0), i
        else:
            assert list(ids) == (policies[prompt] if lora else likeliest(plain, plain, prompt, 0.0))
    assert [ids for _, ids in seen[0::2]] != [ids for _, ids in seen[1::2]]


# --- judges, and what is refused -----------------------------------------------------------------


def test_a_judge_chooses_and_no_scores_are_logged(tmp_path):
    trainer = trainer_of("XPO", tmp_path, None, more={"judge": Places(fails={"abc"})}, max_steps=2)
    trainer.train()
    first = trainer.state.log_history[0]
    assert not {"objective/model_scores", "objective/ref_scores"} & first.keys()
    assert first["loss/dpo"] == pytest.approx(math.log(2), rel=1e-5)
    # XPO asks for places only.
    with pytest.raises(AssertionError):
        trainer_of("XPO", tmp_path, None, more={"judge": Shares(0.5)}).train()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": -1.0}, r"alpha must be 0 or more, .* got -1\.0"),
        ({"alpha": []}, r"alpha must be 0 or more, .* got \[\]"),
        ({"beta": 0.0}, "beta must be positive"),
        ({"loss_type": "hinge"}, "loss_type='hinge' is none of sigmoid, ipo"),
        ({"use_vllm": True}, "use_vllm=True has no part in XPOConfig"),
    ],
)
def test_a_config_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        XPOConfig("out", use_cpu=True, **given)
