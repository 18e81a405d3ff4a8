"""XPO; offline, as grpo.py: a small model learns from rewards that can be checked.

Flags and files are those of nash_md.py, with a hub and without:

    python examples/scripts/xpo.py --smoke
    python examples/scripts/xpo.py --model_name_or_path trl-lib/pythia-1b-deduped-tldr-sft \\
        --reward_model_path trl-lib/pythia-1b-deduped-tldr-rm --dataset_name trl-lib/tldr \\
        --learning_rate 5e-7 --missing_eos_penalty 1.0 --alpha 1e-5 --output_dir pythia-1b-tldr-xpo

Offline, figures are of both answers to a problem: the policy's and the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence

import two_answers

from fastrl import XPOConfig, XPOTrainer

SCRIPT = two_answers.script(XPOTrainer, XPOConfig, "XPO", __doc__, "runs/xpo")


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]] | None:
    return SCRIPT.run(argv)


if __name__ == "__main__":
    main()
