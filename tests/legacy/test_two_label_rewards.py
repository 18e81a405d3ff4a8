"""Multi-adapter PPO by the lines of its guide: the reward is the second of two labels."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from fastrl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
from tests.legacy.error_parts import Parts

peft = pytest.importorskip("peft")


@pytest.fixture
def tokenizer(tmp_path):
    made = Parts(tmp_path).tokenizer
    made.padding_side = "left"
    made.model_input_names = ["input_ids", "attention_mask"]
    return made


@pytest.fixture
def judge(tmp_path):
    """A reward model of two labels, saved beside the base model that it adapts."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(plain, lora).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "score" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "judge")
    return model


@pytest.mark.filterwarnings("ignore")
def test_ppo_is_rewarded_by_the_second_label(judge, tokenizer, tmp_path):
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        str(tmp_path / "base"), peft_config=lora, reward_adapter=str(tmp_path / "judge")
    )
    config = PPOConfig(batch_size=2, mini_batch_size=1, log_with=None)
    ppo_trainer = PPOTrainer(config, model, ref_model=None, tokenizer=tokenizer)
    question_tensors = [torch.tensor([2, 3]), torch.tensor([2, 7, 4])]
    response_tensors = [torch.tensor([4, 5, 6]), torch.tensor([5, 2, 6, 3])]
    rows = [torch.cat(pair) for pair in zip(question_tensors, response_tensors, strict=True)]

    inputs = tokenizer(tokenizer.batch_decode(rows), padding=True, return_tensors="pt")
    raw_rewards = ppo_trainer.accelerator.unwrap_model(ppo_trainer.model).compute_reward_score(
        **inputs
    )
    rewards = [raw_rewards[i, -1, 1] for i in range(len(raw_rewards))]
    stats = ppo_trainer.step(question_tensors, response_tensors, rewards)

    with torch.no_grad():
        expected = torch.cat([judge(row[None]).logits for row in rows])
    assert raw_rewards.shape == (2, 7, 2)
    torch.testing.assert_close(raw_rewards[:, -1], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected[:, 0], expected[:, 1], atol=0.1)  # they are told apart
    assert stats["ppo/mean_scores"] == pytest.approx(expected[:, 1].mean().item(), rel=1e-4)
