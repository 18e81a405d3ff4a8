"""A step of `SFTTrainer` against TRL 1.16: 4 rows × 2 accumulated, Qwen2 4 × 256, V 16384."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).resolve().parent))

from offline_race import offline_race

ROWS = {
    "sft": "SFTTrainer step, ragged rows",
    "sft_packed": "SFTTrainer step, both packing",
    "sft_lora": "SFTTrainer step, LoRA",
}


@pytest.mark.parametrize("case", ROWS)
def bench_sft(
    benchmark: BenchmarkFixture, seed: int, peer_python: dict[str, Path], case: str
) -> None:
    """Rows of 32–1000 tokens: as they are; packed into 1024 by both; under an adapter."""
    offline_race(benchmark, ROWS[case], case, seed, peer_python)
