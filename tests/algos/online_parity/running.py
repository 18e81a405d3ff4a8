"""One training run of a case, with `trl` 1.16 or with `fastrl`: what it logs, what it asks for."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import PrinterCallback

from tests.algos.online_parity import making

# Wall-clock figures, and what only one side logs.
UNCOMPARED = ("runtime", "per_second", "total_flos", "train_loss", "epoch", "step", "step_time")


@dataclass(frozen=True)
class Case:
    """A trainer, what differs from the base configuration, and what it learns from."""

    name: str
    trainer: str = "GRPO"  # GRPO | RLOO
    config: dict[str, Any] = field(default_factory=dict)
    model: str = "qwen2"
    lora: str = ""  # new: as a peft_config; given: a PeftModel with an adapter of its own
    chat: bool = False
    stream: bool = False  # an IterableDataset
    evaluate: bool = False
    rewards: tuple[str, ...] = ("spelling", "brevity")
    script: frozenset[str] = frozenset()  # logps, holes, luck, env_mask: see `making.Script`
    engine: bool = False  # logps are vLLM's
    group: str = "grpo"  # the file it is recorded in


BASE: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 16,
    "max_steps": 10,
    "learning_rate": 2e-3,
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


def _policy(case: Case, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"model": making.saved_model(folder, case.model)}
    if case.lora:
        from peft import LoraConfig, get_peft_model

        adapter = LoraConfig(
            r=4,
            lora_alpha=8,
            lora_dropout=0.0,
            target_modules=["q_proj", "v_proj", "up_proj"],
            task_type="CAUSAL_LM",
        )
        if case.lora == "new":
            return found | {"peft_config": adapter}
        found["model"] = get_peft_model(found["model"], adapter)
        making.fill_adapters(found["model"])
    return found


def _rewards(case: Case, folder: Path) -> dict[str, Any]:
    if case.rewards != ("judge",):
        return {"reward_funcs": [making.REWARDS[name] for name in case.rewards]}
    return {
        "reward_funcs": [making.judge(folder)],
        "reward_processing_classes": [making.tokenizer()],
    }


def trainer_of(
    case: Case, library: ModuleType, folder: Path, give: Callable, claim: Callable
) -> tuple[Any, making.Script]:
    """The case's trainer, ready to train, and what answers for its policy."""
    torch.manual_seed(0)
    rows = [making.prompts(40, case.chat), making.prompts(6, case.chat, seed=1)]
    script = making.Script(rows, case.script)
    config = getattr(library, f"{case.trainer}Config")(str(folder), **{**BASE, **case.config})
    data = {"train_dataset": rows[0].to_iterable_dataset() if case.stream else rows[0]}
    if case.evaluate:
        data["eval_dataset"] = rows[1]
    if case.trainer == "GRPO":
        data["rollout_func"] = script.rollout
    trainer = getattr(library, f"{case.trainer}Trainer")(
        args=config,
        processing_class=making.tokenizer(),
        **_policy(case, folder),
        **_rewards(case, folder),
        **data,
    )
    if case.lora == "new":
        making.fill_adapters(trainer.model)
    if case.trainer == "RLOO":
        give(trainer, script)
    if case.engine:
        claim(trainer)
    return trainer, script


def run(
    case: Case,
    library: ModuleType,
    give: Callable[[Any, making.Script], None] = making.give_completions,
    claim: Callable[[Any], None] = making.claim_engine,
) -> dict[str, Any]:
    """Train.

    Returns:
        logs: for each metric its values in order, without those of `UNCOMPARED`;
        asked: for each generation the numbers of its prompts in order.
    """
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer, script = trainer_of(case, library, Path(name), give, claim)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        history = trainer.state.log_history
    logs: dict[str, list[float | None]] = {}
    for entry in history:
        if "train_runtime" in entry:
            continue
        for key, value in entry.items():
            if not _uncompared(key):
                logs.setdefault(key, []).append(value)
    return {"logs": logs, "asked": script.asked}


def _uncompared(key: str) -> bool:
    bare = key.removeprefix("eval_")
    return bare in UNCOMPARED or any(bare.endswith(part) for part in UNCOMPARED[:2])
