"""A race of a diffusion trainer's steps: TRL against fastrl, on the same noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture
from race import close_to, trainer_race

ROUNDS = 25  # of a second or less, so that a few disturbances do not decide the median


def same_work(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Both drew the same images and took the same first pass over them."""
    for key, want in theirs["numbers"].items():
        got = ours["numbers"][key]
        assert close_to(want, got, 1e-3, least=1.0), (key, want, got)


def diffusion_race(
    benchmark: BenchmarkFixture,
    algorithm: str,
    steps: int,
    seed: int,
    peer_python: dict[str, Path],
    peer: str,
) -> None:
    """Time and memory of `step` of a trainer of workers/diffusion_step.py."""
    request = {"algorithm": algorithm, "seed": seed, "width": 16, "size": 16, "steps": steps}
    worker = ("diffusion_step.py", request)
    row = f"{algorithm}Trainer.step"
    trainer_race(benchmark, peer_python, peer, row, worker, ROUNDS, same_work)
