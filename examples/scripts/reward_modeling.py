"""Reward modelling; offline, a small model learns to tell right solutions from wrong ones.

Offline, from a folder of GSM8K and a model made by sft.py (a short SFT goes first without one):

    python examples/scripts/reward_modeling.py --dataset path/to/gsm8k --model runs/sft

To see that it runs: --smoke. With a hub, whole or with an adapter:

    python examples/scripts/reward_modeling.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct \\
        --dataset_name trl-lib/ultrafeedback_binarized --learning_rate 1e-5 --output_dir Qwen2-RM
    python examples/scripts/reward_modeling.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct \\
        --dataset_name trl-lib/ultrafeedback_binarized --use_peft --lora_task_type SEQ_CLS

Flags of the script of TRL 0.7.4 (--model_name --reward_config.learning_rate --peft_config.r …) work
too, and bring its defaults.

Offline it writes the model, log.jsonl, curves.png and report.md to --output_dir.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gsm8k
import sft
import torch
from command_line import Offline, Script

from fastrl import (
    ModelConfig,
    RewardConfig,
    RewardTrainer,
    get_peft_config,
    get_quantization_config,
)

OFFLINE = {
    "output_dir": "runs/reward",
    "max_steps": 100,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "learning_rate": 3e-4,
    "center_rewards_coefficient": 0.01,
}
FIRST = {  # what the script of TRL 0.7.4 did unless told otherwise
    "model_name_or_path": "facebook/opt-350m",
    "dataset_name": "Anthropic/hh-rlhf",
    "output_dir": "output",
    "learning_rate": 1.41e-5,
    "per_device_train_batch_size": 64,
    "gradient_accumulation_steps": 16,
    "max_length": 512,
    "num_train_epochs": 1,
    "logging_steps": 500,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "lora_r": 16,
    "lora_alpha": 16,
    "lora_task_type": "SEQ_CLS",
}
FIGURES = {
    "a person's solution against a wrong one: accuracy": "person_accuracy",
    "… margin": "person_margin",
    "… loss": "person_loss",
    "a model's right solution against a wrong one: accuracy": "models_accuracy",
    "… its margin": "models_margin",
    "… its loss": "models_loss",
}


@torch.no_grad()
def rewards(trainer: RewardTrainer, rows: Any) -> list[tuple[float, float]]:
    """(reward of the right solution, of the wrong one) of each pair."""
    tokenizer, model = trainer.processing_class, trainer.accelerator.unwrap_model(trainer.model)
    model.eval()
    found = []
    for row in rows:
        chats = [row["prompt"] + row[side] for side in ("chosen", "rejected")]
        ids = [
            tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt")
            for chat in chats
        ]
        right, wrong = (model(**each.to(model.device)).logits.item() for each in ids)
        found.append((right, wrong))
    return found


def train_offline(
    offline: Offline, args: RewardConfig, model_args: ModelConfig
) -> dict[str, tuple[float, float]]:
    """Right solutions against wrong ones to the same problem."""
    data, folder = Path(offline.dataset), Path(args.output_dir)
    rows, held_out = gsm8k.solved(data)
    model = offline.model or sft.short(offline, folder / "sft", args)
    args.model_init_kwargs = {**gsm8k.loading(model_args), **(args.model_init_kwargs or {})}
    trainer = RewardTrainer(
        model=model,
        args=args,
        train_dataset=gsm8k.pairs(rows),
        eval_dataset=gsm8k.pairs_by_writer(held_out),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    shown = gsm8k.pairs(held_out).select(range(3))
    rewards_before = rewards(trainer, shown)
    figures = gsm8k.train(trainer, FIGURES)
    samples = []
    for row, before, after in zip(shown, rewards_before, rewards(trainer, shown), strict=True):
        sample = {"problem": row["prompt"][0]["content"]}
        for place, (name, side) in enumerate((("right", "chosen"), ("wrong", "rejected"))):
            heading = f"{name}, reward {before[place]:+.2f} before and {after[place]:+.2f} after"
            sample[heading] = row[side][0]["content"]
        samples.append(sample)
    drawn = ("loss", "accuracy", "margin", "grad_norm")
    gsm8k.report(folder, "Reward model of solutions to GSM8K", figures, samples, drawn)
    return figures


SCRIPT = Script(RewardTrainer, RewardConfig, train_offline, __doc__, OFFLINE, FIRST)


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]] | None:
    return SCRIPT.run(argv)


if __name__ == "__main__":
    main()
