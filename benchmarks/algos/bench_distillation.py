"""A step of `DistillationTrainer` against TRL 1.16: 32 answers, a teacher twice as wide."""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).resolve().parent))

from online_race import online_race


def bench_distillation_given(
    benchmark: BenchmarkFixture, seed: int, peer_python: dict[str, Path]
) -> None:
    """Prompts of 32–128 tokens; the same ragged completions of mean 96 on both sides."""
    row = "DistillationTrainer step, completions given"
    online_race(benchmark, row, "distillation_given", seed, peer_python)


def bench_distillation(
    benchmark: BenchmarkFixture, seed: int, peer_python: dict[str, Path]
) -> None:
    """The same prompts, completions drawn in process."""
    row = "DistillationTrainer step, generation and all"
    online_race(benchmark, row, "distillation", seed, peer_python)
