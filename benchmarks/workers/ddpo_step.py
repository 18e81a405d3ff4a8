"""`DDPOTrainer.step` of `trl` (0.7.11) or `fastrl`: the same pipeline, prompts and noise.

    python ddpo_step.py trl|fastrl       then requests on standard input, see protocol.py

Memory: `above_bytes` is the high-water mark of resident memory during the step, less what was
resident when the trainer stood.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("ACCELERATE_USE_CPU", "true")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import protocol
import torch
import transformers

sys.path.append(str(protocol.ROOT / "examples" / "scripts"))

PROMPTS = ("red cat", "blue dog", "grey bird", "green frog")


def reward(images: torch.Tensor, prompts: Any, metadata: Any) -> tuple[torch.Tensor, dict]:
    """Brightness."""
    return images.float().mean(dim=(1, 2, 3)), {}


def setup(request: dict[str, Any]) -> protocol.Round:
    """Build the trainer; a round is one epoch whose noise is drawn from (seed, round)."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(request["threads"])
    name = sys.argv[1]
    library = protocol.import_fastrl() if name == "fastrl" else importlib.import_module(name)
    import tiny_pipeline

    with tempfile.TemporaryDirectory() as folder:
        tiny_pipeline.save(Path(folder), width=request["width"], size=request["size"])
        pipeline = library.DefaultDDPOStableDiffusionPipeline(folder, use_lora=False)
    asked = iter(PROMPTS[i % len(PROMPTS)] for i in range(10**9))
    config = library.DDPOConfig(
        mixed_precision="no",
        sample_num_steps=request["steps"],
        sample_batch_size=4,
        sample_num_batches_per_epoch=1,
        train_batch_size=2,
        train_learning_rate=1e-5,
    )
    trainer = library.DDPOTrainer(config, reward, lambda: (next(asked), {}), pipeline)
    pipeline.set_progress_bar_config(disable=True)
    rows: list[dict[str, Any]] = []
    trainer.accelerator.log = lambda values, step=None, **_: rows.append(values)
    standing = protocol.resident_bytes()

    def run(number: int) -> dict[str, Any]:
        torch.manual_seed(request["seed"] + number)
        rows.clear()
        protocol.reset_peak()
        seconds, _ = protocol.timed(lambda: trainer.step(0, 0))
        peak = protocol.peak_bytes()
        return {
            "seconds": seconds,
            "above_bytes": peak - standing,
            "standing_bytes": standing,
            "numbers": {
                "reward_mean": float(rows[0]["reward_mean"]),
                "loss": float(rows[1]["loss"]),
            },
        }

    return run


if __name__ == "__main__":
    protocol.serve(setup)
