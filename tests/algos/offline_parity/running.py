"""One training run of a case, with `trl` 1.16 or with `fastrl`: what it logs at each step."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from tests.algos.offline_parity import making

# Wall-clock figures, and what only one side logs.
UNCOMPARED = ("runtime", "per_second", "total_flos", "train_loss", "epoch", "step")


@dataclass(frozen=True)
class Case:
    """A trainer, what differs from the base configuration, and its data."""

    name: str
    trainer: str  # SFT | DPO | KTO | Reward
    rows: str  # see `making.rows`
    config: dict[str, Any] = field(default_factory=dict)
    model: str = "qwen2"
    lora: bool = False
    steps: int = 30
    count: int = 96
    evaluate: bool = False
    reference: bool = False  # an explicit reference model with other weights
    template: str = making.CHATML
    steepness: float = 1.0  # by how much the loss enlarges the rounding of what it is given


BASE: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "seed": 7,
}


def _models(case: Case) -> dict[str, Any]:
    architecture = "score" if case.trainer == "Reward" else "lm"
    found = {"model": making.model(case.model, architecture)}
    if case.reference:
        found["ref_model"] = making.model(case.model, architecture)
        for parameter in found["ref_model"].parameters():
            parameter.data.mul_(0.9)
    return found


def _peft(case: Case) -> dict[str, Any]:
    if not case.lora:
        return {}
    from peft import LoraConfig

    kind = "SEQ_CLS" if case.trainer == "Reward" else "CAUSAL_LM"
    keywords = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"]}
    return {"peft_config": LoraConfig(**keywords, lora_dropout=0.0, task_type=kind)}


def trainer_of(case: Case, library: ModuleType, folder: str) -> Any:
    """The case's trainer, ready to train."""
    torch.manual_seed(0)
    arguments = {**BASE, "max_steps": case.steps, **case.config}
    config = getattr(library, f"{case.trainer}Config")(folder, **arguments)
    data = {"train_dataset": making.rows(case.rows, case.count)}
    if case.evaluate:
        data["eval_dataset"] = making.rows(case.rows, 10, seed=1)
    return getattr(library, f"{case.trainer}Trainer")(
        args=config,
        processing_class=making.tokenizer(case.template),
        **_models(case),
        **_peft(case),
        **data,
    )


def numbers(history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Of each log what is a number and not in `UNCOMPARED`."""
    return [
        {
            key: value
            for key, value in entry.items()
            if isinstance(value, int | float) and not any(u in key for u in UNCOMPARED)
        }
        for entry in history
        if "train_runtime" not in entry
    ]


def run(case: Case, library: ModuleType) -> list[dict[str, float]]:
    """Train; one dict of numbers for each log."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trainer_of(case, library, folder)
        trainer.train()
        return numbers(trainer.state.log_history)
