"""Direct preference optimization; offline, a small model learns to prefer right solutions.

Offline, from a folder of GSM8K and a model made by sft.py (a short SFT goes first without one):

    python examples/scripts/dpo.py --dataset path/to/gsm8k --model runs/sft

With a hub, whole or with an adapter:

    python examples/scripts/dpo.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct \\
        --dataset_name trl-lib/ultrafeedback_binarized --learning_rate 5e-7 --output_dir Qwen2-DPO
    python examples/scripts/dpo.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct \\
        --dataset_name trl-lib/ultrafeedback_binarized --use_peft --learning_rate 5e-6

Offline it writes the model, log.jsonl, curves.png and report.md to --output_dir.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gsm8k
import sft

from fastrl import DPOConfig, DPOTrainer, ModelConfig, get_peft_config, get_quantization_config

OFFLINE = {
    "output_dir": "runs/dpo",
    "max_steps": 80,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "learning_rate": 1e-4,
}
FIGURES = {
    "a person's solution against a wrong one: reward accuracy": "person_rewards/accuracies",
    "… reward margin": "person_rewards/margins",
    "… loss": "person_loss",
    "a model's right solution against a wrong one: reward accuracy": "models_rewards/accuracies",
    "… its reward margin": "models_rewards/margins",
    "… its loss": "models_loss",
}


def train_offline(
    offline: gsm8k.Offline, args: DPOConfig, model_args: ModelConfig
) -> dict[str, tuple[float, float]]:
    """Right solutions against wrong ones to the same problem."""
    data, folder = Path(offline.dataset), Path(args.output_dir)
    rows, held_out = gsm8k.solved(data)
    model = offline.model or sft.short(offline.dataset, folder / "sft", args)
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
    figures, samples = gsm8k.train_with_answers(trainer, FIGURES, questions)
    drawn = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen")
    gsm8k.report(folder, "DPO on solutions to GSM8K", figures, samples, drawn)
    return figures


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]] | None:
    return gsm8k.run(DPOTrainer, DPOConfig, OFFLINE, train_offline, __doc__, argv)


if __name__ == "__main__":
    main()
