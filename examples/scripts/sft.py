"""Supervised fine-tuning; offline, a small language model learns to write solutions to problems.

Offline, from a folder of GSM8K, tokenizer and model made from scratch:

    python examples/scripts/sft.py --dataset path/to/gsm8k

To see that it runs: --smoke. With a hub, whole or with an adapter:

    python examples/scripts/sft.py --model_name_or_path Qwen/Qwen2-0.5B \\
        --dataset_name trl-lib/Capybara --packing --output_dir Qwen2-0.5B-SFT
    python examples/scripts/sft.py --model_name_or_path Qwen/Qwen2-0.5B \\
        --dataset_name trl-lib/Capybara --use_peft --lora_r 32 --learning_rate 2e-4

Flags of the script of TRL 0.7.4 (--model_name --seq_length --batch_size --peft_lora_r …) work too,
and bring its defaults.

Offline it writes the model, log.jsonl, curves.png and report.md to --output_dir.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import gsm8k
from command_line import Offline, Script
from transformers import TrainingArguments

from fastrl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config, get_quantization_config

OFFLINE = {
    "output_dir": "runs/sft",
    "max_steps": 400,
    "per_device_train_batch_size": 4,
    "packing": True,
    "eval_packing": False,
    "learning_rate": 2e-3,
    "weight_decay": 0.1,
}
FIRST = {  # what the script of TRL 0.7.4 did unless told otherwise
    "model_name_or_path": "facebook/opt-350m",
    "dataset_name": "timdettmers/openassistant-guanaco",
    "output_dir": "output",
    "learning_rate": 1.41e-5,
    "per_device_train_batch_size": 64,
    "gradient_accumulation_steps": 16,
    "max_length": 512,
    "num_train_epochs": 3,
    "logging_steps": 1,
    "save_steps": 100,
    "save_total_limit": 10,
    "gradient_checkpointing": False,
    "lora_r": 64,
    "lora_alpha": 16,
}
FIGURES = {"cross-entropy (nats a token)": "loss", "token accuracy": "mean_token_accuracy"}
SHORT = 150  # steps of an SFT that only precedes another run


def train_offline(
    offline: Offline, args: SFTConfig, model_args: ModelConfig
) -> dict[str, tuple[float, float]]:
    """Learn the solutions of the training problems, not the problems themselves."""
    data, folder = Path(offline.dataset), Path(args.output_dir)
    rows, test = gsm8k.problems(data, "train"), gsm8k.problems(data, "test")
    args.model_init_kwargs = {**gsm8k.loading(model_args), **(args.model_init_kwargs or {})}
    trainer = SFTTrainer(
        model=offline.model or gsm8k.new_model(folder / "start", rows, args.seed, offline.smoke),
        args=args,
        train_dataset=rows,
        eval_dataset=gsm8k.first(test),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    shown = test.select(range(3))
    questions = [row[0]["content"] for row in shown["prompt"]]
    figures, samples = gsm8k.train_with_answers(trainer, FIGURES, questions, offline.smoke)
    before, after = figures["cross-entropy (nats a token)"]
    figures["perplexity"] = (math.exp(before), math.exp(after))
    for sample, row in zip(samples, shown["completion"], strict=True):
        sample["by hand"] = row[0]["content"]
    drawn = ("loss", "mean_token_accuracy", "grad_norm", "learning_rate")
    gsm8k.report(folder, "SFT on GSM8K solutions", figures, samples, drawn)
    return figures


def short(
    offline: Offline, folder: Path, args: TrainingArguments, most: int = SHORT, times: int = 1
) -> str:
    """The folder of a model by a short SFT, for the scripts that start from one.

    It takes `most` steps, or `times` those of the run that follows if these are fewer. A smoke run
    starts from an untrained one.
    """
    if offline.smoke:
        rows = gsm8k.problems(Path(offline.dataset), "train")
        return gsm8k.new_model(folder, rows, args.seed, small=True)
    steps = min(most, times * args.max_steps) if args.max_steps > 0 else most
    words = ["--dataset", offline.dataset, "--output_dir", str(folder), "--seed", str(args.seed)]
    main([*words, "--max_steps", str(steps), "--use_cpu", str(args.use_cpu)])
    return str(folder)


SCRIPT = Script(SFTTrainer, SFTConfig, train_offline, __doc__, OFFLINE, FIRST)


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]] | None:
    return SCRIPT.run(argv)


if __name__ == "__main__":
    main()
