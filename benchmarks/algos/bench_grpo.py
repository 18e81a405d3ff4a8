"""A step of `GRPOTrainer` against TRL 1.16, in parts and whole: 4 prompts × 8 completions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).resolve().parent))

from online_race import online_race

ROWS = {
    "grpo_given": "GRPOTrainer step, completions given",
    "grpo_given_long": "GRPOTrainer step, completions given, prompts of 512",
    "grpo": "GRPOTrainer step, generation and all",
    "generation": "Generation of 4 prompts, 8 answers each",
}


@pytest.mark.parametrize("case", ROWS)
def bench_grpo(
    benchmark: BenchmarkFixture, seed: int, peer_python: dict[str, Path], case: str
) -> None:
    """Prompts of 32–128 tokens or 512, completions of geometric lengths of mean 96, at most 256."""
    online_race(benchmark, ROWS[case], case, seed, peer_python)
