"""What the tests of error types call: tiny models and trainers."""

from __future__ import annotations

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

import fastrl
from fastrl.algos.iterative_sft import IterativeSFTTrainer

WORDS = ["<pad>", "<eos>", "the", "cat", "sat", "on", "a", "mat"]
PAIRS = Dataset.from_list([{"prompt": "the", "chosen": " cat", "rejected": " mat"}] * 2)
TEXTS = Dataset.from_list([{"text": "the cat sat"}] * 2)
TOKENISED = Dataset.from_list(
    [{f"{n}_{s}": [2] for n in ("input_ids", "attention_mask") for s in ("chosen", "rejected")}] * 2
)


ANSWERS = Dataset.from_list(
    [{"prompt": "the", "completion": " cat", "label": i % 2 == 0} for i in range(4)]
)
PROMPTS = Dataset.from_list([{"prompt": "the"}] * 8)


class Parts:
    """What the calls are made of, each new where a call may change it."""

    def __init__(self, folder):
        plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, "<pad>"))
        plain.pre_tokenizer = pre_tokenizers.Whitespace()
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>"
        )
        self.folder = str(folder)
        self.config = GPT2Config(
            vocab_size=8, n_positions=16, n_embd=8, n_layer=1, n_head=2, pad_token_id=0,
            eos_token_id=1, num_labels=1,
        )  # fmt: skip
        self.wrapped = fastrl.AutoModelForCausalLMWithValueHead.from_pretrained(self.language())
        self._ppo = None

    def language(self):
        return GPT2LMHeadModel(self.config)

    def judge(self):
        return GPT2ForSequenceClassification(self.config)

    def args(self, **more):
        return TrainingArguments(self.folder, use_cpu=True, report_to="none", **more)

    def ppo(self, *positional, **more):
        given = {"config": fastrl.PPOConfig(batch_size=2, mini_batch_size=1)}
        given |= {"model": self.wrapped, "tokenizer": self.tokenizer}
        return fastrl.PPOTrainer(*positional, **{**given, **more})

    @property
    def trainer(self):
        if self._ppo is None:
            self._ppo = self.ppo()
        return self._ppo

    def lora(self):
        from peft import LoraConfig

        return LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")

    def sft(self, **more):
        given = {"train_dataset": TEXTS, "tokenizer": self.tokenizer, "args": self.args()}
        given |= {"model": self.language(), "dataset_text_field": "text"}
        return fastrl.SFTTrainer(**{**given, **more})

    def dpo(self, **more):
        given = {"train_dataset": PAIRS, "tokenizer": self.tokenizer, "args": self.args()}
        return fastrl.DPOTrainer(**{"model": self.language(), **given, **more})

    def reward(self, **more):
        given = {"train_dataset": TOKENISED, "tokenizer": self.tokenizer, "args": self.args()}
        return fastrl.RewardTrainer(**{"model": self.judge(), **given, **more})

    def iterative(self, **more):
        given = {"args": self.args(max_steps=2), "tokenizer": self.tokenizer}
        return IterativeSFTTrainer(**{"model": self.language(), **given, **more})

    def kto(self, **more):
        given = {"train_dataset": ANSWERS, "tokenizer": self.tokenizer, "args": self.kto_args()}
        return fastrl.KTOTrainer(**{"model": self.language(), **given, **more})

    def online(self, **more):
        given = {"train_dataset": PROMPTS, "tokenizer": self.tokenizer, "args": self.online_args()}
        given |= {"model": self.language(), "reward_model": self.judge()}
        return fastrl.OnlineDPOTrainer(**{**given, **more})

    def ppo_v2(self, **more):
        given = {"config": self.ppo_v2_args(), "tokenizer": self.tokenizer}
        given |= {"policy": self.language(), "ref_policy": self.language()}
        given |= {"reward_model": self.judge(), "value_model": self.judge()}
        return fastrl.PPOv2Trainer(**{**given, "train_dataset": PROMPTS, **more})

    def _config(self, kind, more):
        given = {"use_cpu": True, "report_to": "none", "bf16": False}
        return kind(self.folder, **{**given, "gradient_checkpointing": False, **more})

    def sft_args(self, **more):
        return self._config(fastrl.SFTConfig, more)

    def dpo_args(self, **more):
        return self._config(fastrl.DPOConfig, more)

    def kto_args(self, **more):
        return self._config(fastrl.KTOConfig, {"per_device_train_batch_size": 2, **more})

    def reward_args(self, **more):
        return self._config(fastrl.RewardConfig, more)

    def online_args(self, **more):
        return self._config(fastrl.OnlineDPOConfig, {"per_device_train_batch_size": 2, **more})

    def ppo_v2_args(self, **more):
        small = {"per_device_train_batch_size": 4, "total_episodes": 8, "response_length": 2}
        return self._config(fastrl.PPOv2Config, {**small, **more})


def check(parts, kind, call):
    """The call raises an error of that type, which says something."""
    with pytest.raises(kind) as found:
        call(parts)
    assert str(found.value), "an error says what is wrong"
