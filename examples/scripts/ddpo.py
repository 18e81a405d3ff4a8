"""DDPO: Stable Diffusion learns to draw what scores high.

    python examples/scripts/ddpo.py --num_epochs 200 --sample_batch_size 6 --train_batch_size 3 \\
        --sample_num_batches_per_epoch 4 --per_prompt_stat_tracking True \\
        --per_prompt_stat_tracking_buffer_size 32 --log_with wandb
    python examples/scripts/ddpo.py --smoke        # a tiny pipeline on a CPU, no hub

The reward is the LAION aesthetic predictor, or with `--reward brightness` the mean of all pixels.
Writes the pipeline, its checkpoints and log.jsonl to --output_dir.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import images

from fastrl import DDPOConfig, DDPOTrainer


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    options, config = images.parse(DDPOConfig, argv, __doc__)
    return images.train(DDPOTrainer, config, options)


if __name__ == "__main__":
    main()
