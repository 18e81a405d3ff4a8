"""A step of `XPOTrainer` against TRL 0.28: 8 prompts × 2 accumulated, answers in pairs."""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).resolve().parent))

from online_race import paired_race


def bench_xpo(benchmark: BenchmarkFixture, seed: int, peer_python: dict[str, Path]) -> None:
    """Prompts of 32–128 tokens; answers of policy and reference, mean 38 and at most 64."""
    paired_race(benchmark, "XPOTrainer step, generation and all", "xpo", seed, peer_python)
