"""Attention of groups of answers over shared prompts, forward and backward, against torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tensor_race import tensor_race


@pytest.mark.parametrize("prompt", [32, 512])
def bench_segment_attention(benchmark: BenchmarkFixture, prompt: int, seed: int) -> None:
    """2 groups of 8 answers × 96 tokens; 4 heads, 2 of keys, of 64; torch has a row an answer."""
    request = {"operation": "segment_attention", "shape": [2, 8, prompt, 96], "seed": seed}
    row = f"attention, 2x8 answers of 96 over prompts of {prompt}, with gradients"
    tensor_race(benchmark, row, request, rounds=11, tolerance=1e-4)
