"""`AlignPropTrainer.step` against TRL 0.11.4: 2 × 4 images of 10 steps, a UNet of 0.2M weights."""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).resolve().parent))

from diffusion_race import diffusion_race


def bench_alignprop_step(
    benchmark: BenchmarkFixture, seed: int, peer_python: dict[str, Path]
) -> None:
    """Sampling, with gradients of the later steps as drawn, scoring and an optimizer step."""
    diffusion_race(benchmark, "AlignProp", 10, seed, peer_python, "trl-0.11.4")
