"""Distillation; offline, a small model learns from one that was trained for longer.

Offline, from a folder of GSM8K and models made by sft.py (SFTs go first without them, the teacher's
being the longer one):

    python examples/scripts/distillation.py --dataset path/to/gsm8k --model runs/sft-short \\
        --teacher_model_name_or_path runs/sft

To see that it runs: --smoke. With a hub, whole or with an adapter:

    python examples/scripts/distillation.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \\
        --teacher_model_name_or_path Qwen/Qwen2.5-1.5B-Instruct \\
        --dataset_name trl-lib/ultrafeedback-prompt --learning_rate 2e-5 --output_dir distilled
    python examples/scripts/distillation.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \\
        --teacher_model_name_or_path Qwen/Qwen2.5-1.5B-Instruct \\
        --dataset_name trl-lib/ultrafeedback-prompt --use_peft --learning_rate 2e-4

Offline it writes the model, log.jsonl, curves.png and report.md to --output_dir.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gsm8k
import sft
from command_line import Offline, Script

from fastrl import (
    DistillationConfig,
    DistillationTrainer,
    ModelConfig,
    get_peft_config,
    get_quantization_config,
)
from fastrl.cli.distillation import distillation_arguments

OFFLINE = {
    "output_dir": "runs/distillation",
    "max_steps": 60,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "max_completion_length": 128,
    "learning_rate": 3e-4,
}
FIGURES = {
    "divergence from the teacher (nats a token)": "loss",
    "entropy (nats a token)": "entropy",
    "tokens of a solution": "completions/mean_length",
}


def teacher_of(offline: Offline, folder: Path, args: DistillationConfig) -> str:
    """The folder of a model that has learnt the solutions for as long as sft.py does by itself."""
    if offline.smoke:
        rows = gsm8k.problems(Path(offline.dataset), "train")
        return gsm8k.new_model(folder, rows, args.seed + 1, small=True)
    return sft.short(offline, folder, args, most=sft.OFFLINE["max_steps"], times=8)


def train_offline(
    offline: Offline, args: DistillationConfig, model_args: ModelConfig
) -> dict[str, tuple[float, float]]:
    """Solutions to the training problems, drawn by the student and compared with the teacher."""
    data, folder = Path(offline.dataset), Path(args.output_dir)
    rows, test = gsm8k.problems(data, "train"), gsm8k.first(gsm8k.problems(data, "test"))
    model = offline.model or sft.short(offline, folder / "sft", args)
    teacher = args.teacher_model_name_or_path or teacher_of(offline, folder / "teacher", args)
    args.model_init_kwargs = {**gsm8k.loading(model_args), **(args.model_init_kwargs or {})}
    trainer = DistillationTrainer(
        model=model,
        teacher_model=teacher,
        args=args,
        train_dataset=rows.select_columns(["prompt"]),
        eval_dataset=test.select_columns(["prompt"]),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    questions = [row[0]["content"] for row in test["prompt"][:3]]
    figures, samples = gsm8k.train_with_answers(trainer, FIGURES, questions, offline.smoke)
    drawn = ("loss", "entropy", "completions/mean_length", "grad_norm")
    gsm8k.report(folder, "Distillation on GSM8K", figures, samples, drawn)
    return figures


SCRIPT = Script(
    DistillationTrainer,
    DistillationConfig,
    train_offline,
    __doc__,
    OFFLINE,
    keywords=distillation_arguments,
)


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]] | None:
    return SCRIPT.run(argv)


if __name__ == "__main__":
    main()
