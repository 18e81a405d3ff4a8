"""What the offline runs of orpo.py and cpo.py have in common: pairs of solutions, no reference."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gsm8k
import sft
from command_line import Offline, Script

from fastrl import ModelConfig, get_peft_config, get_quantization_config

FIGURES = {
    "a person's solution against a wrong one: reward accuracy": "person_rewards/accuracies",
    "… reward margin": "person_rewards/margins",
    "… cross-entropy of the right one": "person_nll_loss",
    "a model's right solution against a wrong one: reward accuracy": "models_rewards/accuracies",
    "… its reward margin": "models_rewards/margins",
}
OFFLINE = {
    "max_steps": 80,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "learning_rate": 1e-4,
}


def train_offline(
    trainer_class: Any, offline: Offline, args: Any, model_args: ModelConfig
) -> dict[str, tuple[float, float]]:
    """Right solutions against wrong ones to the same problem; the figures before and after."""
    folder = Path(args.output_dir)
    rows, held_out = gsm8k.solved(Path(offline.dataset))
    name = trainer_class.__name__.removesuffix("Trainer")
    args.model_init_kwargs = {**gsm8k.loading(model_args), **(args.model_init_kwargs or {})}
    trainer = trainer_class(
        model=offline.model or sft.short(offline, folder / "sft", args),
        args=args,
        train_dataset=gsm8k.pairs(rows),
        eval_dataset=gsm8k.pairs_by_writer(held_out),
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
    )
    questions = [row["question"] for row in held_out[:3]]
    figures, samples = gsm8k.train_with_answers(trainer, FIGURES, questions, offline.smoke)
    drawn = ("loss", "nll_loss", "rewards/accuracies", "rewards/margins")
    gsm8k.report(folder, f"{name} on solutions to GSM8K", figures, samples, drawn)
    return figures


def script(trainer_class: Any, config: Any, doc: str, output_dir: str) -> Script:
    """The command line of a trainer on pairs."""
    settings = {"output_dir": output_dir, **OFFLINE}
    return Script(trainer_class, config, partial(train_offline, trainer_class), doc, settings)
