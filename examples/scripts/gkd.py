"""GKD; offline, a small model learns solutions through the eyes of one trained for longer.

Offline, from a folder of GSM8K and models made by sft.py (SFTs go first without them, the teacher's
being the longer one):

    python examples/scripts/gkd.py --dataset path/to/gsm8k --model runs/sft-short \\
        --teacher_model_name_or_path runs/sft

To see that it runs: --smoke. With a hub, whole or with an adapter:

    python examples/scripts/gkd.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct \\
        --teacher_model_name_or_path Qwen/Qwen2-1.5B-Instruct \\
        --dataset_name trl-lib/chatbot_arena_completions --learning_rate 2e-5 --output_dir gkd-model
    python examples/scripts/gkd.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct \\
        --teacher_model_name_or_path Qwen/Qwen2-1.5B-Instruct \\
        --dataset_name trl-lib/chatbot_arena_completions --use_peft --learning_rate 2e-4

Offline it writes the model, log.jsonl, curves.png and report.md to --output_dir.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gsm8k
import sft
from command_line import Offline, Script
from datasets import Dataset
from distillation import teacher_of

from fastrl import (
    GKDConfig,
    GKDTrainer,
    ModelConfig,
    get_peft_config,
    get_quantization_config,
)
from fastrl.cli.gkd import gkd_arguments
from fastrl.cli.training import load_quantised

OFFLINE = {
    "output_dir": "runs/gkd",
    "max_steps": 100,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "max_new_tokens": 128,
    "learning_rate": 3e-4,
}
FIGURES = {
    "divergence from the teacher (nats a token)": "loss",
    "entropy (nats a token)": "entropy",
}


def conversations(rows: Dataset) -> Dataset:
    """Problem and solution as the turns of one conversation."""
    turns = [row["prompt"] + row["completion"] for row in rows]
    return Dataset.from_dict({"messages": turns})


def train_offline(
    offline: Offline, args: GKDConfig, model_args: ModelConfig
) -> dict[str, tuple[float, float]]:
    """Half of the time the training set's solutions, half of the time the student's own."""
    data, folder = Path(offline.dataset), Path(args.output_dir)
    rows, test = gsm8k.problems(data, "train"), gsm8k.first(gsm8k.problems(data, "test"))
    model = offline.model or sft.short(offline, folder / "sft", args)
    args.model_init_kwargs = {**gsm8k.loading(model_args), **(args.model_init_kwargs or {})}
    load_quantised(args, get_quantization_config(model_args))
    trainer = GKDTrainer(
        model=model,
        teacher_model=args.teacher_model_name_or_path
        or teacher_of(offline, folder / "teacher", args),
        args=args,
        train_dataset=conversations(rows),
        eval_dataset=conversations(test),
        peft_config=get_peft_config(model_args),
    )
    questions = [row[0]["content"] for row in test["prompt"][:3]]
    figures, samples = gsm8k.train_with_answers(trainer, FIGURES, questions, offline.smoke)
    gsm8k.report(folder, "GKD on GSM8K", figures, samples, ("loss", "entropy", "grad_norm"))
    return figures


SCRIPT = Script(GKDTrainer, GKDConfig, train_offline, __doc__, OFFLINE, keywords=gkd_arguments)


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]] | None:
    return SCRIPT.run(argv)


if __name__ == "__main__":
    main()
