"""A race of online trainers' steps, or of generation alone: TRL against fastrl."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import itemgetter
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
# As each draws at a temperature of 0.9, where the chance of an end is 1 / 55. Nash-MD: 8 lengths of
# mean 24 (cut at 32) and standard deviation 10. XPO: 32 of mean 38 (cut at 64) and 23.
PAIRED = {"nash_md": (24 - 15, 24 + 15), "xpo": (38 - 16, 38 + 16)}
VOCABULARY = 16384


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


def paired_length(numbers: dict[str, float]) -> float:
    """The mean length of answers of a model that is almost uniform over its vocabulary."""
    return numbers["objective/entropy"] / math.log(VOCABULARY)


def paired_race(
    benchmark: BenchmarkFixture, row: str, case: str, seed: int, peer_python: dict[str, Path]
) -> None:
    """`online_race` of a trainer of TRL 0.28 that draws from two models, with other metrics."""
    least, most = PAIRED[case]

    def same_lengths(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
        for side in (theirs, ours):
            assert least < paired_length(side["numbers"]) < most, side["numbers"]

    _race(benchmark, row, case, seed, peer_python, "trl-0.28.0", same_lengths, paired_length)


def online_race(
    benchmark: BenchmarkFixture,
    row: str,
    case: str,
    seed: int,
    peer_python: dict[str, Path],
) -> None:
    """Time and memory of a case of workers/online_step.py; every step has prompts of its own."""
    check = same_work if "given" in case else same_lengths
    length = itemgetter(LENGTH)
    _race(benchmark, row, case, seed, peer_python, PEER, check, length)


def _race(
    benchmark: BenchmarkFixture,
    row: str,
    case: str,
    seed: int,
    peer_python: dict[str, Path],
    peer: str,
    check: Callable[[dict[str, Any], dict[str, Any]], None],
    length: Callable[[dict[str, float]], float],
) -> None:
    request = {"case": case, "seed": seed, "vocab": VOCABULARY, "steps": ROUNDS + 2}
    worker = ("online_step.py", request)
    answers = trainer_race(benchmark, peer_python, peer, row, worker, ROUNDS, check)
    for side, found in zip(("peer", "fastrl"), answers, strict=True):
        benchmark.extra_info[f"{side}_lengths"] = [length(one["numbers"]) for one in found]
