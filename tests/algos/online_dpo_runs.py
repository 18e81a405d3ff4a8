"""What the tests of Online DPO share, and those of Nash-MD and XPO: prompts, settings, trainers."""

from __future__ import annotations

from datasets import Dataset

from fastrl import OnlineDPOConfig, OnlineDPOTrainer
from tests.algos.offline_parity.making import model, tokenizer
from tests.algos.online_dpo_parity import cases, running
from tests.train.online_runs import PROMPTS, SHORT, vowels

BY_NAME = {case.name: case for case in cases.ALL}


def settings(folder, **given):
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "max_new_tokens": 6,
        **SHORT,
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
