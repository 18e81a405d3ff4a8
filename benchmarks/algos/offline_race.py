"""A race of optimizer steps inside `trainer.train()`: TRL 1.16 against fastrl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture
from race import close_to, trainer_race

PEER = "trl-1.16.0"
ROUNDS = 5
# Differences of summed log-probabilities are rounded to 1e-5. Losses and gradient norms agree to
# 1e-6; other rows differ by 1e-2.
SAME = 1e-4
# A count of near ties, which rounding decides: not what is compared.
COUNTED = "accurac"


def same_work(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Both took the same step: loss, gradient norm and every other metric of it agree."""
    assert {"loss", "grad_norm"} <= theirs["numbers"].keys()
    for key, want in theirs["numbers"].items():
        got = ours["numbers"][key]
        assert COUNTED in key or close_to(want, got, SAME), (key, want, got)


def offline_race(
    benchmark: BenchmarkFixture,
    row: str,
    case: str,
    seed: int,
    peer_python: dict[str, Path],
    peer: str = PEER,
) -> None:
    """Time and memory of a case of workers/offline_step.py; every step has rows of its own."""
    request = {"case": case, "seed": seed, "vocab": 16384, "steps": ROUNDS + 2}
    worker = ("offline_step.py", request)
    _, ours = trainer_race(benchmark, peer_python, peer, row, worker, ROUNDS, same_work)
    benchmark.extra_info["tokens"] = ours[-1]["numbers"]["num_tokens"]
