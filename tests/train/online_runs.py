"""Short runs on a tiny model, answers drawn in this process: GRPO's, and what others share."""

from __future__ import annotations

import torch
from datasets import Dataset

from fastrl import GRPOConfig, GRPOTrainer
from tests.algos.offline_parity.making import model, tokenizer

PROMPTS = ["abc", "hello", "9 + 3 is", "xy", "the end of", "q", "so", "what is"]


# Of any trainer that draws answers.
SHORT = {
    "gradient_accumulation_steps": 2,
    "max_steps": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
}


def vowels(completions, **_):
    """The share of vowels."""
    return [sum(c in "aeiou" for c in text) / max(len(text), 1) for text in completions]


def arguments(folder, **given):
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 6,
        **SHORT,
        **given,
    }


def grpo(folder, rewards=vowels, policy=None, rows=PROMPTS, more=None, **given):
    return GRPOTrainer(
        policy or model(),
        rewards,
        GRPOConfig(**arguments(folder, **given)),
        Dataset.from_dict({"prompt": rows}),
        processing_class=tokenizer(),
        **(more or {}),
    )


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def same(left, right, **tolerance):
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, **tolerance)


def trained(trainer):
    trainer.train()
    return trainer


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]
