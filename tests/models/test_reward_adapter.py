"""A reward model's adapter beside the policy's, on one base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from fastrl import AutoModelForCausalLMWithValueHead

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
