"""`whiten` of 16 million numbers under a mask, against torch."""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tensor_race import tensor_race


def bench_whiten(benchmark: BenchmarkFixture, seed: int) -> None:
    """fp32, three quarters of the elements counted."""
    request = {"operation": "whiten", "shape": [4096, 4096], "seed": seed}
    tensor_race(benchmark, "whiten 16M, masked", request, rounds=11, tolerance=1e-4)
