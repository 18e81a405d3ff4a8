"""A reward model's adapter beside the policy's, on one base model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from fastrl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
from fastrl.models.policy import logprobs
from fastrl.rollout.responses import generate_one
from fastrl.types import Tokens

IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(5))
peft = pytest.importorskip("peft")


@pytest.fixture
def folders(tiny: Any, tmp_path: Path) -> tuple[str, str, torch.Tensor]:
    """(base model, reward adapter, rewards of IDS by the reward model itself)."""
    base = tmp_path / "base"
    tiny("llama", torch.float32).save_pretrained(base)
    judge = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32
    )
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"])
    judge = peft.get_peft_model(judge, config).eval()
    with torch.no_grad():
        for name, parameter in judge.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    adapter = tmp_path / "judge"
    judge.save_pretrained(adapter)
    with torch.no_grad():
        rewards = judge(IDS).logits
    return str(base), str(adapter), rewards


@pytest.fixture
def words() -> Any:
    inner = Tokenizer(models.WordLevel({str(i): i for i in range(97)}, unk_token="1"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="0", eos_token="2")


def test_scores_are_the_reward_models_own(folders: tuple[str, str, torch.Tensor]) -> None:
    base, adapter, rewards = folders
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        base, peft_config=lora, reward_adapter=adapter
    ).train()
    policy = {n for n, p in model.named_parameters() if p.requires_grad}
    before = model.eval()(IDS)[0]
    got = model.train().compute_reward_score(IDS, ppo_adapter_name="default")
    assert got.shape == (2, 9, 1)
    torch.testing.assert_close(got[:, -1], rewards, rtol=1e-4, atol=1e-5)
    assert not got.requires_grad
    assert model.pretrained_model.training
    assert {n for n, p in model.named_parameters() if p.requires_grad} == policy
    assert not any("judge" in name or "reward" in name for name in policy)
    assert torch.equal(model.eval()(IDS)[0], before)


def test_adapters_without_a_head_or_not_there_are_refused(
    folders: tuple[str, str, torch.Tensor], tiny: Any, tmp_path: Path
) -> None:
    base = folders[0]
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    peft.get_peft_model(tiny("llama", torch.float32), lora).save_pretrained(tmp_path / "headless")
    for source, message in (("headless", "holds no scoring head"), ("nowhere", "found no adapter")):
        with pytest.raises(ValueError, match=message):
            AutoModelForCausalLMWithValueHead.from_pretrained(
                base, peft_config=lora, reward_adapter=str(tmp_path / source)
            )


def with_reward_adapter(folders: tuple[str, str, torch.Tensor], **given: Any) -> Any:
    """A policy on the base model, with an adapter of its own and the reward model's."""
    base, adapter, _ = folders
    torch.manual_seed(0)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "o_proj"])
    return AutoModelForCausalLMWithValueHead.from_pretrained(
        base, peft_config=lora, reward_adapter=adapter, **given
    )


def moved(model: Any) -> Any:
    """The policy's adapter and value head away from where they start."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("lora_B" in name or "v_head" in name):
                parameter.normal_(std=0.3)
    return model.eval()


@pytest.mark.parametrize("safe", [True, False])
def test_both_adapters_are_saved_and_loaded(
    folders: tuple[str, str, torch.Tensor], tmp_path: Path, safe: bool
) -> None:
    base, _, rewards = folders
    model = moved(with_reward_adapter(folders))
    out = tmp_path / "saved"
    model.save_pretrained(out, safe_serialization=safe)
    again = AutoModelForCausalLMWithValueHead.from_pretrained(
        str(out), is_trainable=True, reward_adapter=str(out / "reward_adapter")
    ).eval()
    for ours, theirs in zip(again(IDS)[::2], model(IDS)[::2], strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(again.compute_reward_score(IDS), model.compute_reward_score(IDS))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in again.named_parameters() if p.requires_grad} == trained
    # And the reward model that the adapter came from takes it too.
    judge = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32
    )
    judge = peft.PeftModel.from_pretrained(judge, str(out / "reward_adapter")).eval()
    with torch.no_grad():
        torch.testing.assert_close(judge(IDS).logits, rewards, rtol=1e-5, atol=1e-6)


def ppo(model: Any, words: Any) -> Any:
    config = PPOConfig(
        batch_size=4,
        mini_batch_size=2,
        ppo_epochs=2,
        learning_rate=1e-2,
        seed=3,
        adap_kl_ctrl=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PPOTrainer(config, model, tokenizer=words)


def scores_of(model: Any, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """By the reward adapter, of each row's last token."""
    return [model.compute_reward_score(row[None])[0, -1, 0] for row in rows]


def test_ppo_is_rewarded_by_the_second_adapter_and_changes_only_the_first(
    folders: tuple[str, str, torch.Tensor], words: Any
) -> None:
    """The same steps as with rewards from elsewhere and no second adapter on the model."""
    base, adapter, _ = folders
    judge = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32
    )
    judge = peft.PeftModel.from_pretrained(judge, adapter).eval()
    both = ppo(with_reward_adapter(folders), words)
    torch.manual_seed(0)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "o_proj"])
    alone = AutoModelForCausalLMWithValueHead.from_pretrained(base, peft_config=lora)
    start = dict(both.model.named_parameters())
    with torch.no_grad():
        for name, parameter in alone.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(start[name])
    alone = ppo(alone, words)
    frozen = {n: p.clone() for n, p in both.model.named_parameters() if not p.requires_grad}
    queries = [row.clone() for row in torch.randint(3, 97, (4, 5))]
    for step in range(2):
        drawn = []
        for trainer in (both, alone):
            torch.manual_seed(step)
            drawn.append(
                trainer.generate(
                    queries,
                    return_prompt=False,
                    do_sample=True,
                    top_k=0,
                    max_new_tokens=6,
                    pad_token_id=0,
                    eos_token_id=-1,
                )
            )
        assert all(map(torch.equal, *drawn))
        rows = [torch.cat(pair) for pair in zip(queries, drawn[0], strict=True)]
        scores = scores_of(both.model, rows)
        with torch.no_grad():
            apart = [judge(row[None]).logits[0, 0] for row in rows]
        torch.testing.assert_close(torch.stack(scores), torch.stack(apart), rtol=1e-4, atol=1e-5)
        np.random.seed(step)  # the order of minibatches
        ours = both.step(queries, drawn[0], scores)
        np.random.seed(step)
        theirs = alone.step(queries, drawn[0], scores)
        for key in ("objective/kl", "ppo/loss/total", "ppo/policy/entropy", "ppo/val/vpred"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-7), (step, key)
        assert step > 0 or ours["objective/kl"] == 0  # the reference: no adapter at all
        assert step == 0 or ours["objective/kl"] != 0
    after = dict(both.model.named_parameters())
    assert all(torch.equal(after[name], start) for name, start in frozen.items())
    for name, parameter in alone.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter, after[name], rtol=1e-3, atol=1e-5)
    assert both.model.pretrained_model.active_adapter == "default"


def test_the_policy_scores_and_answers_as_before_a_reward(
    folders: tuple[str, str, torch.Tensor],
) -> None:
    model = moved(with_reward_adapter(folders))
    tokens = Tokens(IDS, [0, 0], [9, 9], [3, 4])
    before = logprobs(model, tokens)
    given = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    drawn = generate_one(model, IDS[0], **given)
    model.compute_reward_score(IDS, torch.ones_like(IDS))
    after = logprobs(model, tokens)
    assert torch.equal(before.logp, after.logp) and torch.equal(before.values, after.values)
    assert torch.equal(generate_one(model, IDS[0], **given), drawn)
    # Of its own adapter, not of the base model or the reward's.
    plain = model.pretrained_model.generate(IDS[:1], **given)
    assert torch.equal(plain, drawn)
    with model.pretrained_model.disable_adapter():
        assert not torch.equal(logprobs(model, tokens).logp, before.logp)
    assert torch.equal(logprobs(model, tokens).logp, before.logp)


def test_a_failing_reward_pass_leaves_the_policy_active(
    folders: tuple[str, str, torch.Tensor],
) -> None:
    model = with_reward_adapter(folders).train()
    with pytest.raises(IndexError):
        model.compute_reward_score(IDS + 1000)
    assert model.pretrained_model.active_adapter == "default" and model.pretrained_model.training
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert any("default" in name for name in trained)
    assert not any("reward_adapter" in name for name in trained)


def test_a_model_without_a_reward_adapter_says_how_to_get_one(tiny: Any) -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny("llama", torch.float32))
    with pytest.raises(ValueError, match="give from_pretrained one by reward_adapter="):
        model.compute_reward_score(IDS)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    for source, given in ((3, {"peft_config": lora}), ("somewhere", {})):
        with pytest.raises(ValueError, match="reward_adapter"):
            AutoModelForCausalLMWithValueHead.from_pretrained(
                tiny("llama", torch.float32), reward_adapter=source, **given
            )
