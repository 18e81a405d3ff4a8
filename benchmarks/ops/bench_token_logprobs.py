"""`token_logprobs` (log-probability and entropy) on 512 × 151936, against torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tensor_race import tensor_race


# bf16: torch rounds its results to 8 bits, fastrl returns fp32, so they agree to 2 % only.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 5e-2)])
def bench_token_logprobs(
    benchmark: BenchmarkFixture, seed: int, dtype: str, tolerance: float
) -> None:
    """Forward, both outputs."""
    request = {"operation": "token_logprobs", "shape": [512, 151936], "dtype": dtype, "seed": seed}
    short = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    row = f"token_logprobs + entropy, 512x151936 {short}"
    tensor_race(benchmark, row, request, rounds=7, tolerance=tolerance)
