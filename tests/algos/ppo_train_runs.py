"""Short runs of PPO's `train()` form on tiny models."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

import fastrl
from tests.algos.ppo_train_parity import running
from tests.algos.ppo_train_parity.cases import Case

CONFIG: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_ppo_epochs": 2,
    "response_length": 4,
    "learning_rate": 1e-3,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "num_sample_generations": 0,
    "per_device_eval_batch_size": 2,
}


def make(folder: Path, rows: int = 12, **given: Any) -> Any:
    """A trainer on Qwen2 models of two layers; `given` are fields, or arguments of the trainer."""
    arguments = {**running.parts(Case("x", model="qwen2")), "optimizers": (None, None)}
    data = Dataset.from_dict({"input_ids": running.prompts(rows)})
    arguments |= {"train_dataset": data, "data_collator": None, "eval_dataset": None}
    arguments |= {"callbacks": None, "peft_config": None}
    chosen = {name: given.pop(name) for name in list(given) if name in arguments}
    args = fastrl.PPOConfig(output_dir=str(folder), **{**CONFIG, **given})
    return fastrl.PPOTrainer(args=args, **{**arguments, **chosen})


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        yield
