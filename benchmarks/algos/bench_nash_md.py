"""A step of `NashMDTrainer` against TRL 0.28: 4 prompts × 2 accumulated, answers in pairs."""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).resolve().parent))

from online_race import paired_race


def bench_nash_md(benchmark: BenchmarkFixture, seed: int, peer_python: dict[str, Path]) -> None:
    """Prompts of 32–128 tokens; answers of policy and mixture, mean 24 and at most 32."""
    paired_race(benchmark, "NashMDTrainer step, generation and all", "nash_md", seed, peer_python)
