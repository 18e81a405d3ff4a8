"""`plan_packing` of a million lengths against TRL 1.16's planner, which is Python."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from race import Worker, race


def same_order(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """The same rows in the same bins in the same order."""
    assert (theirs["bins"], theirs["digest"]) == (ours["bins"], ours["digest"])


def bench_plan_packing(
    benchmark: BenchmarkFixture, seed: int, peer_python: dict[str, Path]
) -> None:
    """New lengths each round, capacity 2048."""
    if "trl-1.16.0" not in peer_python:
        pytest.skip("the environment of trl-1.16.0 could not be made")
    request = {"seed": seed, "count": 1_000_000}
    with (
        Worker(peer_python["trl-1.16.0"], "packing.py", "trl", request) as peer,
        Worker(Path(sys.executable), "packing.py", "fastrl", request) as ours,
    ):
        race(benchmark, peer, ours, rounds=3, check=same_order)
    benchmark.extra_info.update(row="plan_packing of 1M lengths", peer="TRL 1.16.0")
