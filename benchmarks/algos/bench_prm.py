"""A step of `PRMTrainer` against TRL 0.28: 8 rows, Qwen2 4 × 256, V 16384."""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).resolve().parent))

from offline_race import offline_race


def bench_prm(benchmark: BenchmarkFixture, seed: int, peer_python: dict[str, Path]) -> None:
    """Prompts of 100–140 tokens, six steps of 4–40, each judged."""
    offline_race(benchmark, "PRMTrainer step", "prm", seed, peer_python, "trl-0.28.0")
