"""A race of optimizer steps inside `trainer.train()`: TRL 1.16 against fastrl."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from race import Worker, race

PEER = "trl-1.16.0"
ROUNDS = 7
# Relative, absolute below 1: differences of summed log-probabilities are rounded to 1e-5. Losses
# and gradient norms agree to 1e-6; other rows differ by 1e-2.
SAME = 1e-4
# A count of near ties, which rounding decides: not what is compared.
COUNTED = "accurac"


def same_work(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Both took the same step: loss, gradient norm and every other metric of it agree."""
    assert {"loss", "grad_norm", "num_tokens"} <= theirs["numbers"].keys()
    for key, want in theirs["numbers"].items():
        got = ours["numbers"][key]
        if COUNTED not in key:
            assert abs(got - want) <= SAME * max(abs(want), 1.0), (key, want, got)


def offline_race(
    benchmark: BenchmarkFixture,
    row: str,
    case: str,
    seed: int,
    peer_python: dict[str, Path],
) -> None:
    """Time and memory of a case of workers/offline_step.py; every step has rows of its own."""
    if PEER not in peer_python:
        pytest.skip(f"the environment of {PEER} could not be made")
    request = {"case": case, "seed": seed, "vocab": 16384, "steps": ROUNDS + 2}
    with (
        Worker(peer_python[PEER], "offline_step.py", "trl", request) as peer,
        Worker(Path(sys.executable), "offline_step.py", "fastrl", request) as ours,
    ):
        theirs, mine = race(benchmark, peer, ours, ROUNDS, same_work)
    benchmark.extra_info.update(
        row=row,
        peer="TRL 1.16.0",
        peer_cpu_median=statistics.median(one["cpu_seconds"] for one in theirs),
        fastrl_cpu_median=statistics.median(one["cpu_seconds"] for one in mine),
        peer_above_bytes=max(one["above_bytes"] for one in theirs),
        fastrl_above_bytes=max(one["above_bytes"] for one in mine),
        peer_standing_bytes=theirs[-1]["standing_bytes"],
        fastrl_standing_bytes=mine[-1]["standing_bytes"],
        tokens=theirs[-1]["numbers"]["num_tokens"],
    )
