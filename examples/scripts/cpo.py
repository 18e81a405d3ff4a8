"""CPO, SimPO and AlphaPO; offline, a small model learns to prefer right solutions, by itself.

Offline, from a folder of GSM8K and a model made by sft.py (a short SFT goes first without one):

    python examples/scripts/cpo.py --dataset path/to/gsm8k --model runs/sft
    python examples/scripts/cpo.py --dataset path/to/gsm8k --model runs/sft --loss_type simpo \\
        --cpo_alpha 0 --beta 2 --simpo_gamma 1

To see that it runs: --smoke. With a hub, whole or with an adapter:

    python examples/scripts/cpo.py --model_name_or_path Qwen/Qwen2-0.5B \\
        --dataset_name trl-lib/ultrafeedback_binarized --learning_rate 8e-6 --output_dir Qwen2-CPO
    python examples/scripts/cpo.py --model_name_or_path Qwen/Qwen2-0.5B \\
        --dataset_name trl-lib/ultrafeedback_binarized --use_peft --learning_rate 8e-5

Offline it writes the model, log.jsonl, curves.png and report.md to --output_dir.
"""

from __future__ import annotations

from collections.abc import Sequence

import pairs

from fastrl import CPOConfig, CPOTrainer

SCRIPT = pairs.script(CPOTrainer, CPOConfig, __doc__, "runs/cpo")


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]] | None:
    return SCRIPT.run(argv)


if __name__ == "__main__":
    main()
