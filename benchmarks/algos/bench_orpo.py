"""A step of `ORPOTrainer` against TRL 1.16: 4 rows × 2 accumulated, Qwen2 4 × 256, V 16384."""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).resolve().parent))

from offline_race import offline_race


def bench_orpo(benchmark: BenchmarkFixture, seed: int, peer_python: dict[str, Path]) -> None:
    """Prompts of 100–140 tokens, learnt before the chosen answer; answers of 16–256."""
    offline_race(benchmark, "ORPOTrainer step", "orpo", seed, peer_python)
