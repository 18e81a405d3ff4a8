"""`DDPOTrainer.step` against TRL 0.7.11: 4 images of 5 steps, a UNet of 0.2 million weights."""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).resolve().parent))

from diffusion_race import diffusion_race


def bench_ddpo_step(benchmark: BenchmarkFixture, seed: int, peer_python: dict[str, Path]) -> None:
    """Sampling, scoring and training once."""
    diffusion_race(benchmark, "DDPO", 5, seed, peer_python, "trl-0.7.11")
