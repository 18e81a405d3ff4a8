"""Nash-MD; offline, as grpo.py: a small model learns from rewards that can be checked.

Offline, from a folder of GSM8K and a model made by sft.py (an SFT goes first without one):

    python examples/scripts/nash_md.py --dataset path/to/gsm8k --model runs/sft

To see that it runs: --smoke. With a hub, whole or with an adapter:

    python examples/scripts/nash_md.py --model_name_or_path trl-lib/pythia-1b-deduped-tldr-sft \\
        --reward_model_path trl-lib/pythia-1b-deduped-tldr-rm --dataset_name trl-lib/tldr \\
        --learning_rate 5e-7 --missing_eos_penalty 1.0 --output_dir pythia-1b-tldr-nash_md
    python examples/scripts/nash_md.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct \\
        --dataset_name trl-lib/ultrafeedback-prompt --reward_funcs think_format_reward --use_peft

Offline it writes the model, log.jsonl, curves.png and report.md to --output_dir. Figures are of
both answers to a problem: the policy's and the mixture's.
"""

from __future__ import annotations

from collections.abc import Sequence

import two_answers

from fastrl import NashMDConfig, NashMDTrainer

SCRIPT = two_answers.script(NashMDTrainer, NashMDConfig, "Nash-MD", __doc__, "runs/nash_md")


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]] | None:
    return SCRIPT.run(argv)


if __name__ == "__main__":
    main()
