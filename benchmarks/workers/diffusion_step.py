"""`DDPOTrainer.step` of `trl` (0.7.11) or `fastrl`, or AlignProp's (0.11.4): the same noise.

    python diffusion_step.py trl|fastrl       then requests on standard input, see protocol.py

Memory: `above_bytes` is the high-water mark of resident memory during the step, less what was
resident when the trainer stood.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("ACCELERATE_USE_CPU", "true")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import protocol
import torch

sys.path.append(str(protocol.ROOT / "examples" / "scripts"))

BATCH = 4  # images drawn at a time
PROMPTS = ("red cat", "blue dog", "grey bird", "green frog")


def reward(images: torch.Tensor, prompts: Any, metadata: Any) -> tuple[torch.Tensor, dict]:
    """Brightness."""
    return images.float().mean(dim=(1, 2, 3)), {}


def configuration(algorithm: str, steps: int) -> dict[str, Any]:
    """What the trainer's configuration sets, small steps so that both stay together."""
    common = {"mixed_precision": "no", "sample_num_steps": steps, "train_learning_rate": 1e-5}
    if algorithm == "DDPO":
        own = {"sample_batch_size": BATCH, "sample_num_batches_per_epoch": 1, "train_batch_size": 2}
    else:
        own = {
            "train_batch_size": BATCH,
            "train_gradient_accumulation_steps": 2,
            "truncated_rand_backprop_minmax": (0, steps),
        }
    return {**common, **own}


def setup(request: dict[str, Any]) -> protocol.Round:
    """Build the trainer; a round is one epoch whose noise is drawn from (seed, round)."""
    library = protocol.begin(request)
    import tiny_pipeline

    with tempfile.TemporaryDirectory() as folder:
        tiny_pipeline.save(Path(folder), width=request["width"], size=request["size"])
        pipeline = library.DefaultDDPOStableDiffusionPipeline(folder, use_lora=False)
    asked = iter(PROMPTS[i % len(PROMPTS)] for i in range(10**9))
    algorithm = request["algorithm"]
    config = getattr(library, f"{algorithm}Config")(**configuration(algorithm, request["steps"]))
    make = getattr(library, f"{algorithm}Trainer")
    trainer = make(config, reward, lambda: (next(asked), {}), pipeline)
    pipeline.set_progress_bar_config(disable=True)
    rows: list[dict[str, Any]] = []
    trainer.accelerator.log = lambda values, step=None, **_: rows.append(values)
    standing = protocol.resident_bytes()

    def run(number: int) -> dict[str, Any]:
        torch.manual_seed(request["seed"] + number)
        random.seed(request["seed"] + number)
        rows.clear()
        protocol.reset_peak()
        cpu = time.process_time()
        seconds, _ = protocol.timed(lambda: trainer.step(0, 0))
        peak = protocol.peak_bytes()
        return {
            "seconds": seconds,
            "cpu_seconds": time.process_time() - cpu,
            "above_bytes": peak - standing,
            "standing_bytes": standing,
            "numbers": {
                "reward_mean": float(rows[0]["reward_mean"]),
                "loss": float(next(row["loss"] for row in rows if "loss" in row)),
            },
        }

    return run


if __name__ == "__main__":
    protocol.serve(setup)
