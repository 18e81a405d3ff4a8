"""`token_divergence` with its gradients on 512 rows, two heads of 32768 × 256, against torch."""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tensor_race import tensor_race


def bench_token_divergence(benchmark: BenchmarkFixture, seed: int) -> None:
    """Jensen-Shannon; hidden states and head of the student get gradients."""
    request = {"operation": "token_divergence", "shape": [512, 256, 32768], "seed": seed}
    row = "token_divergence and gradients, 512x32768 fp32"
    tensor_race(benchmark, row, request, rounds=5, tolerance=1e-3)
