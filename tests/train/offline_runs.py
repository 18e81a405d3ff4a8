"""Short runs of trainers of each kind on a tiny model."""

from __future__ import annotations

from typing import Any

import torch

from fastrl import (
    CPOConfig,
    CPOTrainer,
    DPOConfig,
    DPOTrainer,
    GKDConfig,
    GKDTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from tests.algos.offline_parity import making

BASE: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "max_steps": 4,
    "logging_steps": 1,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
KINDS = {
    "sft": (SFTTrainer, SFTConfig, "completion", "lm"),
    "cpo": (CPOTrainer, CPOConfig, "preference", "lm"),
    "dpo": (DPOTrainer, DPOConfig, "preference", "lm"),
    "gkd": (GKDTrainer, GKDConfig, "messages", "lm"),
    "reward": (RewardTrainer, RewardConfig, "preference", "score"),
}


def build(folder: Any, kind: str = "sft", cls: type | None = None, **given: Any) -> Any:
    trainer, config, rows, architecture = KINDS[kind]
    keywords = {
        "model": making.model("qwen2", architecture),
        "processing_class": making.tokenizer(),
        "train_dataset": making.rows(rows, 32),
    }
    keywords |= {name: given.pop(name) for name in list(given) if name in _ARGUMENTS}
    return (cls or trainer)(args=config(str(folder), **{**BASE, **given}), **keywords)


_ARGUMENTS = ("model", "train_dataset", "eval_dataset", "callbacks", "data_collator", "peft_config")
_ARGUMENTS += ("teacher_model",)


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_equal_weights(got: Any, want: Any, tolerance: float = 0.0) -> None:
    for name, parameter in want.items():
        torch.testing.assert_close(got[name], parameter, rtol=tolerance, atol=tolerance, msg=name)
