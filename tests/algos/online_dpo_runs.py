"""What the tests of Online DPO share, and those of Nash-MD and XPO: prompts, settings, trainers."""

from __future__ import annotations

from datasets import Dataset

from fastrl import OnlineDPOConfig, OnlineDPOTrainer
from tests.algos.offline_parity.making import model, tokenizer
from tests.algos.online_dpo_parity import cases, running

BY_NAME = {case.name: case for case in cases.ALL}
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
