"""BCO; offline, a small model learns from single solutions, each marked right or wrong.

Offline, from a folder of GSM8K and a model made by sft.py (a short SFT goes first without one):

    python examples/scripts/bco.py --dataset path/to/gsm8k --model runs/sft

To see that it runs: --smoke. With a hub:

    python examples/scripts/bco.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \\
        --dataset_name trl-lib/kto-mix-14k --learning_rate 1e-6 --output_dir bco-model

Offline it writes the model, log.jsonl, curves.png and report.md to --output_dir.
"""

from __future__ import annotations

from collections.abc import Sequence

import kto
from command_line import Offline, Script

from fastrl import BCOConfig, BCOTrainer, ModelConfig

OFFLINE = {**kto.OFFLINE, "output_dir": "runs/bco"}
FIGURES = {
    "loss": "loss",
    "reward of right solutions": "rewards/chosen",
    "reward of wrong solutions": "rewards/rejected",
    "difference": "rewards/margins",
    "mean reward so far (δ)": "delta",
}


def train_offline(
    offline: Offline, args: BCOConfig, model_args: ModelConfig
) -> dict[str, tuple[float, float]]:
    """Solutions one by one, each marked right or wrong."""
    return kto.learn(BCOTrainer, FIGURES, "BCO", offline, args, model_args)


SCRIPT = Script(BCOTrainer, BCOConfig, train_offline, __doc__, OFFLINE)


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]] | None:
    return SCRIPT.run(argv)


if __name__ == "__main__":
    main()
