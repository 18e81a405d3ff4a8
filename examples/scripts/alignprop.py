"""AlignProp: Stable Diffusion follows the gradient of a reward of its images.

    python examples/scripts/alignprop.py --num_epochs 20 --train_gradient_accumulation_steps 4 \\
        --sample_num_steps 50 --train_batch_size 8 --log_with wandb
    python examples/scripts/alignprop.py --smoke        # a tiny pipeline on a CPU, no hub

The reward is the LAION aesthetic predictor, or with `--reward brightness` the mean of all pixels.
Writes the pipeline, its checkpoints and log.jsonl to --output_dir.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import images

from fastrl import AlignPropConfig, AlignPropTrainer


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    options, config = images.parse(AlignPropConfig, argv, __doc__)
    return images.train(AlignPropTrainer, config, options)


if __name__ == "__main__":
    main()
