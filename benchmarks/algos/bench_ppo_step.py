"""`PPOTrainer.step` against TRL 0.7.11: 32 ragged pairs, GPT-2 4 × 256, V 16384, 4 epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture
from race import close_to, trainer_race

SAME = 1e-4  # relative; the two agree to 1e-7 in the first steps, other rows differ by 1e-2


def same_work(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Both took the same step: statistics of four epochs agree."""
    for key, want in theirs["numbers"].items():
        got = ours["numbers"][key]
        assert close_to(want, got, SAME, least=0.1), (key, want, got)


def bench_ppo_step(benchmark: BenchmarkFixture, seed: int, peer_python: dict[str, Path]) -> None:
    """Time and memory; lengths are drawn anew each round, the same for both."""
    worker = ("ppo_step.py", {"seed": seed, "vocab": 16384})
    _, mine = trainer_race(
        benchmark, peer_python, "trl-0.7.11", "PPOTrainer.step", worker, 3, same_work
    )
    lengths = [one["numbers"]["tokens/responses_len_mean"] for one in mine]
    benchmark.extra_info["mean_answer"] = lengths
