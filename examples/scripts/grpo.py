"""GRPO; offline, a small model learns from rewards that can be checked without another model.

Offline, from a folder of GSM8K and a model made by sft.py (an SFT goes first without one):

    python examples/scripts/grpo.py --dataset path/to/gsm8k --model runs/sft

To see that it runs: --smoke. With a hub, whole or with an adapter:

    python examples/scripts/grpo.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct \\
        --dataset_name trl-lib/DeepMath-103K --reward_funcs accuracy_reward \\
        --learning_rate 1e-6 --output_dir Qwen2-0.5B-GRPO
    python examples/scripts/grpo.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct \\
        --dataset_name trl-lib/DeepMath-103K --reward_funcs accuracy_reward think_format_reward \\
        --use_peft --learning_rate 1e-5

Offline it writes the model, log.jsonl, curves.png and report.md to --output_dir.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gsm8k
import sft
from command_line import Offline, Script
from datasets import Dataset
from gsm8k_rewards import answer_line, arithmetic, final, grounded, right_number

from fastrl import GRPOConfig, GRPOTrainer, ModelConfig, get_peft_config, get_quantization_config
from fastrl.cli.rewarded import RewardedArguments, rewarded_arguments

OFFLINE = {
    "output_dir": "runs/grpo",
    "max_steps": 50,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 64,
    "num_generations_eval": 1,
    "max_completion_length": 128,
    "temperature": 0.7,  # as the samples are drawn; a model this small rambles at 1
    "learning_rate": 3e-4,
}
REWARDS = (answer_line, arithmetic, grounded, right_number)
FIGURES = {
    "reward (sum of the four)": "reward",
    "ends in one line A: number": "rewards/answer_line/mean",
    "calculations that hold": "rewards/arithmetic/mean",
    "numbers calculated with that are given": "rewards/grounded/mean",
    "right final number": "rewards/right_number/mean",
    "tokens of a solution": "completions/mean_length",
}


def prompts(rows: Dataset) -> Dataset:
    """Problems to solve: `prompt`, and for the rewards `question` and `solution`, its number."""
    return Dataset.from_list(
        [
            {
                "prompt": row["prompt"],
                "question": row["prompt"][0]["content"],
                "solution": final(row["completion"][0]["content"]),
            }
            for row in rows
        ]
    )


def learn(
    trainer_type: Callable[..., Any],
    title: str,
    offline: Offline,
    args: Any,
    model_args: ModelConfig,
    entropy: str = "entropy",
) -> dict[str, tuple[float, float]]:
    """Solutions to the training problems, drawn and rewarded; test problems to judge by."""
    data, folder = Path(offline.dataset), Path(args.output_dir)
    rows, test = gsm8k.problems(data, "train"), gsm8k.first(gsm8k.problems(data, "test"))
    # What never comes up cannot be rewarded, so the SFT before is as long as a run of its own.
    model = offline.model or sft.short(
        offline, folder / "sft", args, most=sft.OFFLINE["max_steps"], times=8
    )
    args.model_init_kwargs = {**gsm8k.loading(model_args), **(args.model_init_kwargs or {})}
    trainer = trainer_type(
        model=model,
        reward_funcs=list(REWARDS),
        args=args,
        train_dataset=prompts(rows),
        eval_dataset=prompts(test),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    questions = [row[0]["content"] for row in test["prompt"][:3]]
    figures, samples = gsm8k.train_with_answers(trainer, FIGURES, questions, offline.smoke)
    drawn = [key for key in FIGURES.values() if key != "rewards/right_number/mean"]
    gsm8k.report(folder, f"{title} on GSM8K", figures, samples, [*drawn, entropy])
    return figures


SCRIPT = Script(
    GRPOTrainer,
    GRPOConfig,
    partial(learn, GRPOTrainer, "GRPO"),
    __doc__,
    OFFLINE,
    options=RewardedArguments,
    keywords=rewarded_arguments,
)


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]] | None:
    return SCRIPT.run(argv)


if __name__ == "__main__":
    main()
