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
import transformers
from datasets import Dataset

from tests.algos.offline_parity.running import BASE as OFFLINE
from tests.algos.online_parity import making

# Wall-clock figures.
UNCOMPARED = ("runtime", "per_second", "step_time")


@dataclass(frozen=True)
class Case:
    """A trainer, what differs from the base configuration, and what it learns from."""

    name: str
    trainer: str = "GRPO"  # GRPO | RLOO | Distillation
    config: dict[str, Any] = field(default_factory=dict)
    model: str = "qwen2"
    lora: str = ""  # new: as a peft_config; given: a PeftModel with an adapter of its own
    chat: bool = False
    stream: bool = False  # IterableDatasets
    by_path: bool = False  # the model is given as where it lies
    evaluate: str = ""  # one | several evaluation sets
    rewards: tuple[str, ...] = ("spelling", "brevity")
    script: frozenset[str] = frozenset()  # logps, holes, luck, env_mask: see `making.Script`
    engine: bool = False  # logps are vLLM's
    teacher: str = "wide"  # of Distillation, which has no rewards
    group: str = "grpo"  # the file it is recorded in


BASE: dict[str, Any] = {
    **OFFLINE,
    "per_device_eval_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 16,
    "max_steps": 10,
    "learning_rate": 2e-3,
}


def _policy(case: Case, folder: Path) -> dict[str, Any]:
    place = making.saved_model(folder, case.model)
    if case.by_path:
        return {"model": str(place)}
    auto = transformers.AutoModelForCausalLM
    found: dict[str, Any] = {"model": auto.from_pretrained(place, dtype=torch.float32)}
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


def _judged(case: Case, folder: Path) -> dict[str, Any]:
    """What answers are judged by."""
    if case.trainer == "Distillation":
        return {"teacher_model": making.teacher(case.teacher)}
    return _rewards(case, folder)


def _data(case: Case, rows: list[Dataset]) -> dict[str, Any]:
    train, *others = (part.to_iterable_dataset() if case.stream else part for part in rows)
    sets = {"": None, "one": others[0], "several": dict(zip(("near", "far"), others, strict=True))}
    return {"train_dataset": train, "eval_dataset": sets[case.evaluate]}


def trainer_of(
    case: Case, library: ModuleType, folder: Path, give: Callable, claim: Callable
) -> tuple[Any, making.Script]:
    """The case's trainer, ready to train, and what answers for its policy."""
    torch.manual_seed(0)
    sizes = {0: 40, 1: 6, 2: 4}
    rows = [making.prompts(size, case.chat, seed) for seed, size in sizes.items()]
    script = making.Script(rows, case.script)
    settings = {**BASE, **case.config}
    if case.trainer == "Distillation":  # one answer a prompt
        del settings["num_generations"]
    config = getattr(library, f"{case.trainer}Config")(str(folder), **settings)
    data = _data(case, rows)
    if case.trainer == "GRPO":
        data["rollout_func"] = script.rollout
    trainer = getattr(library, f"{case.trainer}Trainer")(
        args=config,
        processing_class=making.tokenizer(),
        **_policy(case, folder),
        **_judged(case, folder),
        **data,
    )
    if case.lora == "new":
        making.fill_adapters(trainer.model)
    if case.trainer != "GRPO":
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
    """`run_in` a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        return run_in(Path(folder), case, library, give, claim)


def _as_trl_says(key: str) -> str:
    """TRL logs the metrics of every evaluation set under the same names, all but the losses."""
    for name in ("near", "far"):
        if key.startswith(f"eval_{name}_") and key != f"eval_{name}_loss":
            return key.replace(f"_{name}", "", 1)
    return key


def run_in(
    folder: Path,
    case: Case,
    library: ModuleType,
    give: Callable[[Any, making.Script], None],
    claim: Callable[[Any], None],
) -> dict[str, Any]:
    """Train.

    Returns:
        logs: for each metric its values in order, without those of `UNCOMPARED`;
        asked: for each generation the numbers of its prompts in order.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer, script = trainer_of(case, library, folder, give, claim)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    logs: dict[str, list[float | None]] = {}
    for entry in trainer.state.log_history:
        if "train_runtime" in entry:
            continue
        for key, value in entry.items():
            if not key.endswith(UNCOMPARED):
                logs.setdefault(_as_trl_says(key), []).append(value)
    return {"logs": logs, "asked": script.asked}
