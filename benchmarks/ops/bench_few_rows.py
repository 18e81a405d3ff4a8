"""A few rows through a large head, as one step of decoding does, against torch."""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tensor_race import tensor_race


def bench_few_rows(benchmark: BenchmarkFixture, seed: int) -> None:
    """8 rows of 1024 by a head of 151936, fp32: bound by one reading of the matrix."""
    request = {"operation": "few_rows_linear", "shape": [8, 1024, 151936], "seed": seed}
    row = "few_rows_linear, 8x1024 by 151936x1024"
    tensor_race(benchmark, row, request, rounds=11, tolerance=1e-4)
