"""`gae` against the loop from the last column to the first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tensor_race import tensor_race


@pytest.mark.parametrize(
    "shape", [(512, 1024), (4096, 1024)], ids=lambda shape: "x".join(map(str, shape))
)
def bench_gae(benchmark: BenchmarkFixture, seed: int, shape: tuple[int, int]) -> None:
    """Advantages and returns, fp32."""
    request = {"operation": "gae", "shape": list(shape), "seed": seed}
    row = f"gae {shape[0]}x{shape[1]}"
    tensor_race(benchmark, row, request, rounds=15, tolerance=1e-3)
