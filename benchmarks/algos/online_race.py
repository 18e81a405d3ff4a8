"""A race of online trainers' steps, or of generation alone: TRL 1.16 against fastrl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offline_race import PEER, SAME
from pytest_benchmark.fixture import BenchmarkFixture
from race import close_to, trainer_race

ROUNDS = 3  # of steps that last up to a minute
LENGTH = "completions/mean_length"
# What one side logs on its own clock.
TIMED = "time"
# Both draw by the same probabilities but with other noise: 32 lengths of mean 83 (96, cut at 256)
# and standard deviation 67. Four standard errors of their mean.
DRAWN = (83 - 48, 83 + 48)


def same_work(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Both took the same step on the same completions: every metric of it agrees."""
    assert {"loss", "grad_norm", LENGTH} <= theirs["numbers"].keys()
    for key, want in theirs["numbers"].items():
        got = ours["numbers"][key]
        assert TIMED in key or close_to(want, got, SAME), (key, want, got)


def same_lengths(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Both drew completions of the lengths that the weights were made for."""
    for side in (theirs, ours):
        assert DRAWN[0] < side["numbers"][LENGTH] < DRAWN[1], side["numbers"]


def online_race(
    benchmark: BenchmarkFixture,
    row: str,
    case: str,
    seed: int,
    peer_python: dict[str, Path],
) -> None:
    """Time and memory of a case of workers/online_step.py; every step has prompts of its own."""
    request = {"case": case, "seed": seed, "vocab": 16384, "steps": ROUNDS + 2}
    worker = ("online_step.py", request)
    check = same_work if "given" in case else same_lengths
    answers = trainer_race(benchmark, peer_python, PEER, row, worker, ROUNDS, check)
    for side, found in zip(("peer", "fastrl"), answers, strict=True):
        benchmark.extra_info[f"{side}_lengths"] = [one["numbers"][LENGTH] for one in found]
