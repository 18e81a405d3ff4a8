"""An iteration of the sentiment run, generation and all, against TRL 0.7.11: GPT-2 4 × 256.

128 prompts of 2–7 tokens, 32 new ones from the policy and from the reference, a classifier's
pipeline, four epochs of PPO and the log, in the calls of the guide. The guide leaves `generate` its
batches of 4; the second row, which has no aim, asks for 64 at a time.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from race import close_to, trainer_race

ROWS = {
    None: "Sentiment run, an iteration",
    64: "Sentiment run, an iteration, 64 generated at a time",
}
SAME = 1e-3  # relative, in the first round; one response that parts from the other's costs 1e-4
PARTED = 2  # responses of the first round, where two likeliest tokens are as likely
DRAWN = 0.01  # relative: mean lengths, of which one response in 500 ends before its 32 tokens


def same_work(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """The first round is the same; later ones draw tokens of their own."""
    pairs = list(zip(theirs["responses"], ours["responses"], strict=True))
    assert sum(a != b for a, b in pairs) <= PARTED
    for key, want in theirs["numbers"].items():
        got = ours["numbers"][key]
        assert not pairs or close_to(want, got, SAME, least=0.1), (key, want, got)


def mean_length(rounds: list[dict[str, Any]]) -> float:
    """Tokens of a response, over all rounds: in one, two that end early are already one percent."""
    return statistics.mean(one["numbers"]["tokens/responses_len_mean"] for one in rounds)


@pytest.mark.parametrize("at_a_time", ROWS)
def bench_sentiment(
    benchmark: BenchmarkFixture, seed: int, peer_python: dict[str, Path], at_a_time: int | None
) -> None:
    """Time and memory; prompts are drawn anew each round, the same for both."""
    request = {"seed": seed, "vocab": 16384, "rows": 128, "at_a_time": at_a_time}
    worker = ("sentiment_run.py", request)
    theirs, ours = trainer_race(
        benchmark, peer_python, "trl-0.7.11", ROWS[at_a_time], worker, 3, same_work
    )
    assert close_to(mean_length(theirs), mean_length(ours), DRAWN)
