"""`PPOTrainer.step` against TRL 0.7.11: 32 ragged pairs, GPT-2 4 × 256, V 16384, 4 epochs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from race import Worker, race

SAME = 1e-4  # relative; the two agree to 1e-7 in the first steps, other rows differ by 1e-2


def same_work(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Both took the same step: statistics of four epochs agree."""
    for key, want in theirs["numbers"].items():
        got = ours["numbers"][key]
        assert abs(got - want) <= SAME * max(abs(want), 0.1), (key, want, got)


def bench_ppo_step(benchmark: BenchmarkFixture, seed: int, peer_python: dict[str, Path]) -> None:
    """Time and memory; lengths are drawn anew each round, the same for both."""
    if "trl-0.7.11" not in peer_python:
        pytest.skip("the environment of trl-0.7.11 could not be made")
    request = {"seed": seed, "vocab": 16384}
    with (
        Worker(peer_python["trl-0.7.11"], "ppo_step.py", "trl", request) as peer,
        Worker(Path(sys.executable), "ppo_step.py", "fastrl", request) as ours,
    ):
        theirs, mine = race(benchmark, peer, ours, rounds=3, check=same_work)
    benchmark.extra_info.update(
        row="PPOTrainer.step",
        peer="TRL 0.7.11",
        peer_above_bytes=max(one["above_bytes"] for one in theirs),
        fastrl_above_bytes=max(one["above_bytes"] for one in mine),
        peer_standing_bytes=theirs[-1]["standing_bytes"],
        fastrl_standing_bytes=mine[-1]["standing_bytes"],
        mean_answer=[one["numbers"]["tokens/responses_len_mean"] for one in mine],
    )
