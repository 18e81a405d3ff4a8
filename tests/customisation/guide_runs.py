"""Trainers of each kind on tiny models, for what the guide of `transformers.Trainer` promises."""

from __future__ import annotations

from typing import Any

from fastrl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    OnlineDPOConfig,
    OnlineDPOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)
from tests.algos.offline_parity import making
from tests.train.offline_runs import BASE

SETTINGS: dict[str, Any] = {**BASE, "per_device_eval_batch_size": 4, "max_steps": 2}
SAMPLING = {"num_generations": 4, "max_completion_length": 4}


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


# Kind -> trainer, config, kind of rows, architecture, more settings, more arguments.
KINDS: dict[str, tuple[Any, Any, str, str, dict[str, Any], dict[str, Any]]] = {
    "sft": (SFTTrainer, SFTConfig, "completion", "lm", {}, {}),
    "dpo": (DPOTrainer, DPOConfig, "preference", "lm", {}, {}),
    "kto": (KTOTrainer, KTOConfig, "unpaired", "lm", {}, {}),
    "reward": (RewardTrainer, RewardConfig, "preference", "score", {}, {}),
    "grpo": (GRPOTrainer, GRPOConfig, "completion", "lm", SAMPLING, {"reward_funcs": length}),
    "rloo": (RLOOTrainer, RLOOConfig, "completion", "lm", SAMPLING, {"reward_funcs": length}),
    "online_dpo": (
        OnlineDPOTrainer,
        OnlineDPOConfig,
        "completion",
        "lm",
        {"max_new_tokens": 4},
        {"reward_funcs": length},
    ),
}
DRAWING = ("grpo", "rloo", "online_dpo")


def rows(kind: str, count: int, seed: int = 0) -> Any:
    made = making.rows(KINDS[kind][2], count, seed)
    return made.select_columns(["prompt"]) if kind in DRAWING else made


def build(folder: Any, kind: str = "sft", cls: Any = None, more: Any = None, **given: Any) -> Any:
    trainer, config, _, architecture, settings, arguments = KINDS[kind]
    parts = {
        "model": making.model("qwen2", architecture),
        "train_dataset": rows(kind, 16),
        "eval_dataset": rows(kind, 4, 1),
        "processing_class": making.tokenizer(),
        **arguments,
        **(more or {}),
    }
    return (cls or trainer)(args=config(str(folder), **{**SETTINGS, **settings, **given}), **parts)


def logged(trainer: Any, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def losses(trainer: Any) -> list[float]:
    return logged(trainer, "loss")
