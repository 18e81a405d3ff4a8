"""A step of `RLOOTrainer` against TRL 1.16: 4 prompts × 8 completions, generated in process."""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).resolve().parent))

from online_race import online_race


def bench_rloo(benchmark: BenchmarkFixture, seed: int, peer_python: dict[str, Path]) -> None:
    """Prompts of 32–128 tokens, completions of mean 96 and at most 256; KL to a frozen copy."""
    online_race(benchmark, "RLOOTrainer step, generation and all", "rloo", seed, peer_python)
