"""Direct preference optimization; offline, a small model learns to prefer right solutions.

Offline, from a folder of GSM8K and a model made by sft.py (a short SFT goes first without one):

    python examples/scripts/dpo.py --dataset path/to/gsm8k --model runs/sft

To see that it runs: --smoke. With a hub, whole or with an adapter:

    python examples/scripts/dpo.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct \\
        --dataset_name trl-lib/ultrafeedback_binarized --learning_rate 5e-7 --output_dir Qwen2-DPO
    python examples/scripts/dpo.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct \\
        --dataset_name trl-lib/ultrafeedback_binarized --use_peft --learning_rate 5e-6

Flags of the script of TRL 0.7.4 (--peft_lora_r --sanity_check …) work too; --peft_lora_r brings its
defaults.

Offline it writes the model, log.jsonl, curves.png and report.md to --output_dir.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gsm8k
import sft
from command_line import Offline, Script

from fastrl import (
    DPOConfig,
    DPOTrainer,
    ModelConfig,
    ScriptArguments,
    get_peft_config,
    get_quantization_config,
)
from fastrl.cli.training import trainer_arguments

OFFLINE = {
    "output_dir": "runs/dpo",
    "max_steps": 80,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "learning_rate": 1e-4,
}
FIRST = {  # what the script of TRL 0.7.4 did unless told otherwise
    "model_name_or_path": "gpt2",
    "dataset_name": "Anthropic/hh-rlhf",
    "output_dir": "output",
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 4,
    "max_steps": 1000,
    "max_length": 512,
    "optim": "rmsprop",
    "warmup_steps": 150,
    "logging_steps": 10,
    "logging_first_step": True,
    "eval_strategy": "steps",
    "eval_steps": 500,
    "gradient_checkpointing": False,
    "lora_r": 64,
    "lora_alpha": 16,
    "sanity_check": True,
}
SANE = 1000  # rows of a sanity check
FIGURES = {
    "a person's solution against a wrong one: reward accuracy": "person_rewards/accuracies",
    "… reward margin": "person_rewards/margins",
    "… loss": "person_loss",
    "a model's right solution against a wrong one: reward accuracy": "models_rewards/accuracies",
    "… its reward margin": "models_rewards/margins",
    "… its loss": "models_loss",
}


@dataclass
class DPOArguments(ScriptArguments):
    """One dataset, its splits, and how much of them."""

    sanity_check: bool = field(
        default=False, metadata={"help": f"Train and evaluate on {SANE} rows only."}
    )


def dpo_arguments(script_args: DPOArguments, *others: Any) -> dict[str, Any]:
    """The keywords of DPOTrainer."""
    keywords = trainer_arguments(script_args, *others)
    if script_args.sanity_check:
        for name in ("train_dataset", "eval_dataset"):
            rows = keywords[name]
            if rows is not None:
                keywords[name] = rows.take(
                    min(SANE, len(rows)) if hasattr(rows, "__len__") else SANE
                )
    return keywords


def train_offline(
    offline: Offline, args: DPOConfig, model_args: ModelConfig
) -> dict[str, tuple[float, float]]:
    """Right solutions against wrong ones to the same problem."""
    data, folder = Path(offline.dataset), Path(args.output_dir)
    rows, held_out = gsm8k.solved(data)
    model = offline.model or sft.short(offline, folder / "sft", args)
    args.model_init_kwargs = {**gsm8k.loading(model_args), **(args.model_init_kwargs or {})}
    trainer = DPOTrainer(
        model=model,
        args=args,
        train_dataset=gsm8k.pairs(rows),
        eval_dataset=gsm8k.pairs_by_writer(held_out),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    questions = [row["question"] for row in held_out[:3]]
    figures, samples = gsm8k.train_with_answers(trainer, FIGURES, questions, offline.smoke)
    drawn = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen")
    gsm8k.report(folder, "DPO on solutions to GSM8K", figures, samples, drawn)
    return figures


SCRIPT = Script(
    DPOTrainer, DPOConfig, train_offline, __doc__, OFFLINE, FIRST, DPOArguments, dpo_arguments
)


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]] | None:
    return SCRIPT.run(argv)


if __name__ == "__main__":
    main()
