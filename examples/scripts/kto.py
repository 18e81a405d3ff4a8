"""KTO; offline, a small model learns from single solutions, each marked right or wrong.

Offline, from a folder of GSM8K and a model made by sft.py (a short SFT goes first without one):

    python examples/scripts/kto.py --dataset path/to/gsm8k --model runs/sft

To see that it runs: --smoke. With a hub, whole or with an adapter:

    python examples/scripts/kto.py --model_name_or_path trl-lib/qwen1.5-1.8b-sft \\
        --dataset_name trl-lib/kto-mix-14k --learning_rate 5e-7 --output_dir kto-aligned-model
    python examples/scripts/kto.py --model_name_or_path trl-lib/qwen1.5-1.8b-sft \\
        --dataset_name trl-lib/kto-mix-14k --use_peft --learning_rate 5e-7

Offline it writes the model, log.jsonl, curves.png and report.md to --output_dir.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gsm8k
import sft
from command_line import Offline, Script

from fastrl import KTOConfig, KTOTrainer, ModelConfig, get_peft_config, get_quantization_config

OFFLINE = {
    "output_dir": "runs/kto",
    "max_steps": 100,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "learning_rate": 1e-4,
}
FIGURES = {
    "loss": "loss",
    "reward of right solutions": "rewards/chosen",
    "reward of wrong solutions": "rewards/rejected",
    "difference": "rewards/margins",
    "KL estimate (nats a solution)": "kl",
}


def learn(
    trainer_class: type,
    names: Mapping[str, str],
    title: str,
    offline: Offline,
    args: Any,
    model_args: ModelConfig,
) -> dict[str, tuple[float, float]]:
    """Train on solutions one by one, each marked right or wrong; the figures named."""
    data, folder = Path(offline.dataset), Path(args.output_dir)
    rows, held_out = gsm8k.solved(data)
    model = offline.model or sft.short(offline, folder / "sft", args)
    args.model_init_kwargs = {**gsm8k.loading(model_args), **(args.model_init_kwargs or {})}
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=gsm8k.marked(rows),
        eval_dataset=gsm8k.first(gsm8k.marked(held_out)),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    questions = [row["question"] for row in held_out[:3]]
    figures, samples = gsm8k.train_with_answers(trainer, names, questions, offline.smoke)
    drawn = ("loss", "rewards/margins", "rewards/chosen", "rewards/rejected")
    gsm8k.report(folder, f"{title} on solutions to GSM8K", figures, samples, drawn)
    return figures


def train_offline(
    offline: Offline, args: KTOConfig, model_args: ModelConfig
) -> dict[str, tuple[float, float]]:
    """As `learn` does."""
    return learn(KTOTrainer, FIGURES, "KTO", offline, args, model_args)


SCRIPT = Script(KTOTrainer, KTOConfig, train_offline, __doc__, OFFLINE)


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]] | None:
    return SCRIPT.run(argv)


if __name__ == "__main__":
    main()
