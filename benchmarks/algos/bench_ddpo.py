"""`DDPOTrainer.step` against TRL 0.7.11: 4 images of 5 steps, a UNet of 0.2 million weights."""

from __future__ import annotations

from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture
from race import close_to, trainer_race

ROUNDS = 3


def same_work(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Both drew the same images and took the same first pass over them."""
    for key, want in theirs["numbers"].items():
        got = ours["numbers"][key]
        assert close_to(want, got, 1e-3, least=1.0), (key, want, got)


def bench_ddpo_step(benchmark: BenchmarkFixture, seed: int, peer_python: Any) -> None:
    """Time and memory of sampling, scoring and training once."""
    worker = ("ddpo_step.py", {"seed": seed, "width": 16, "size": 16, "steps": 5})
    trainer_race(
        benchmark, peer_python, "trl-0.7.11", "DDPOTrainer.step", worker, ROUNDS, same_work
    )
