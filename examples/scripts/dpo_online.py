"""Online DPO; offline, as grpo.py: a small model learns from rewards that can be checked.

Flags and files are those of nash_md.py, with a hub and without:

    python examples/scripts/dpo_online.py --smoke
    python examples/scripts/dpo_online.py --model_name_or_path trl-lib/pythia-1b-deduped-tldr-sft \\
        --reward_model_path trl-lib/pythia-1b-deduped-tldr-rm --dataset_name trl-lib/tldr \\
        --learning_rate 5e-7 --missing_eos_penalty 1.0 --output_dir pythia-1b-tldr-online-dpo
    python examples/scripts/dpo_online.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct \\
        --dataset_name trl-lib/ultrafeedback-prompt --reward_funcs think_format_reward --use_peft

Offline, figures are of both answers to a problem, which are the policy's.
"""

from __future__ import annotations

from collections.abc import Sequence

import two_answers

from fastrl import OnlineDPOConfig, OnlineDPOTrainer

SCRIPT = two_answers.script(
    OnlineDPOTrainer, OnlineDPOConfig, "Online DPO", __doc__, "runs/online_dpo"
)


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]] | None:
    return SCRIPT.run(argv)


if __name__ == "__main__":
    main()
