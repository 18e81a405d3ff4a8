"""RLOO; offline, as grpo.py: a small model learns from rewards that can be checked.

Offline, from a folder of GSM8K and a model made by sft.py (an SFT goes first without one):

    python examples/scripts/rloo.py --dataset path/to/gsm8k --model runs/sft

To see that it runs: --smoke. With a hub, whole or with an adapter:

    python examples/scripts/rloo.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct \\
        --dataset_name trl-lib/DeepMath-103K --reward_funcs accuracy_reward \\
        --num_generations 4 --learning_rate 1e-6 --output_dir Qwen2-0.5B-RLOO
    python examples/scripts/rloo.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct \\
        --dataset_name trl-lib/DeepMath-103K --reward_funcs accuracy_reward \\
        --use_peft --learning_rate 1e-5

Of the flags of TRL 0.11's script those work that mean something today (--sft_model_path
--reward_model_path --rloo_k --response_length --kl_coef …).

Offline it writes the model, log.jsonl, curves.png and report.md to --output_dir.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpo
from command_line import Script

from fastrl import ModelConfig, RLOOConfig, RLOOTrainer
from fastrl.cli.rewarded import RewardedArguments, rewarded_arguments

OFFLINE = {**grpo.OFFLINE, "output_dir": "runs/rloo"}


@dataclass
class RLOOArguments(RewardedArguments):
    """A dataset and what answers are worth, also as TRL 0.11 spelled it."""

    sft_model_path: str | None = field(
        default=None, metadata={"help": "The model to train, before --model_name_or_path."}
    )
    reward_model_path: str | None = field(
        default=None, metadata={"help": "As --reward_model_name_or_path."}
    )


def rloo_arguments(
    script_args: RLOOArguments, training_args: Any, model_args: ModelConfig, *others: Any
) -> dict[str, Any]:
    """The keywords of RLOOTrainer."""
    model_args.model_name_or_path = script_args.sft_model_path or model_args.model_name_or_path
    reward = script_args.reward_model_path or script_args.reward_model_name_or_path
    script_args.reward_model_name_or_path = reward
    return rewarded_arguments(script_args, training_args, model_args, *others)


SCRIPT = Script(
    RLOOTrainer,
    RLOOConfig,
    partial(grpo.learn, RLOOTrainer, "RLOO"),
    __doc__,
    OFFLINE,
    options=RLOOArguments,
    keywords=rloo_arguments,
)


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]] | None:
    return SCRIPT.run(argv)


if __name__ == "__main__":
    main()
