"""A race of online trainers' steps, or of generation alone: TRL 1.16 against fastrl."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
from offline_race import PEER, SAME
from pytest_benchmark.fixture import BenchmarkFixture
from race import Worker, race

ROUNDS = 7
# What one side logs on its own clock.
TIMED = "time"
# Both draw by the same probabilities but with other noise: 32 lengths of mean 83 (96, cut at 256)
# and standard deviation 67. Four standard errors of their mean.
DRAWN = (83 - 48, 83 + 48)


def same_work(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Both took the same step on the same completions: every metric of it agrees."""
    assert {"loss", "grad_norm", "completions/mean_length"} <= theirs["numbers"].keys()
    for key, want in theirs["numbers"].items():
        got = ours["numbers"][key]
        if TIMED not in key:
            assert abs(got - want) <= SAME * max(abs(want), 1.0), (key, want, got)


def same_lengths(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Both drew completions of the lengths that the weights were made for."""
    for side in (theirs, ours):
        assert DRAWN[0] < side["numbers"]["completions/mean_length"] < DRAWN[1], side["numbers"]


def online_race(
    benchmark: BenchmarkFixture,
    row: str,
    case: str,
    seed: int,
    peer_python: dict[str, Path],
) -> None:
    """Time and memory of a case of workers/online_step.py; every step has prompts of its own."""
    if PEER not in peer_python:
        pytest.skip(f"the environment of {PEER} could not be made")
    request = {"case": case, "seed": seed, "vocab": 16384, "steps": ROUNDS + 2}
    check = same_work if "given" in case else same_lengths
    with (
        Worker(peer_python[PEER], "online_step.py", "trl", request) as peer,
        Worker(Path(sys.executable), "online_step.py", "fastrl", request) as ours,
    ):
        theirs, mine = race(benchmark, peer, ours, ROUNDS, check)
    benchmark.extra_info.update(
        row=row,
        peer="TRL 1.16.0",
        peer_cpu_median=statistics.median(one["cpu_seconds"] for one in theirs),
        fastrl_cpu_median=statistics.median(one["cpu_seconds"] for one in mine),
        peer_above_bytes=max(one["above_bytes"] for one in theirs),
        fastrl_above_bytes=max(one["above_bytes"] for one in mine),
        peer_standing_bytes=theirs[-1]["standing_bytes"],
        fastrl_standing_bytes=mine[-1]["standing_bytes"],
        peer_lengths=[one["numbers"]["completions/mean_length"] for one in theirs],
        fastrl_lengths=[one["numbers"]["completions/mean_length"] for one in mine],
    )
