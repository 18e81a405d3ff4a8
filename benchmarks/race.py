"""Two libraries, each in a process and an environment of its own, taking turns."""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

WORKERS = Path(__file__).resolve().parent / "workers"
THREADS = 2
PAUSE = 0.05  # seconds between two rounds, so that the other side's waiting threads are asleep
LIMIT = 600  # seconds for one answer


class Worker:
    """A long-lived process that answers JSON lines; see workers/protocol.py."""

    def __init__(self, python: Path, script: str, library: str, request: dict[str, Any]) -> None:
        self.name = f"{script} {library}"
        self._process = subprocess.Popen(
            [str(python), str(WORKERS / script), library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(THREADS)},
        )
        self.versions: dict[str, str] = self.ask({"threads": THREADS, **request})["versions"]

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            RuntimeError: if the worker reports an error, ends, or takes longer than `LIMIT`.
        """
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], LIMIT)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self._process.kill()
            raise RuntimeError(f"{self.name}: no answer to {request} within {LIMIT} s")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()


def race(
    benchmark: BenchmarkFixture,
    peer: Worker,
    ours: Worker,
    rounds: int,
    check: Callable[[dict[str, Any], dict[str, Any]], None],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One warm-up each, then `rounds` rounds in the order peer, fastrl, peer, fastrl …

    pytest-benchmark times fastrl's rounds from outside; the ratio is made of the seconds that both
    workers measured around the call itself, and stored as `extra_info` with every round.
    `check(peer's answer, ours)` sees each pair and fails if they did not do the same work.
    """
    theirs: list[dict[str, Any]] = []
    mine: list[dict[str, Any]] = []

    def turn_of_peer() -> None:
        time.sleep(PAUSE)
        theirs.append(peer.ask({"round": len(theirs)}))
        time.sleep(PAUSE)

    def turn_of_fastrl() -> None:
        mine.append(ours.ask({"round": len(mine)}))
        check(theirs[-1], mine[-1])

    benchmark.pedantic(turn_of_fastrl, setup=turn_of_peer, rounds=rounds, warmup_rounds=1)
    theirs, mine = theirs[1:], mine[1:]
    benchmark.extra_info.update(
        peer_seconds=[one["seconds"] for one in theirs],
        fastrl_seconds=[one["seconds"] for one in mine],
        peer_median=statistics.median(one["seconds"] for one in theirs),
        fastrl_median=statistics.median(one["seconds"] for one in mine),
        peer_versions=peer.versions,
        fastrl_versions=ours.versions,
    )
    return theirs, mine


def trainer_race(
    benchmark: BenchmarkFixture,
    peer_python: dict[str, Path],
    peer: str,
    row: str,
    worker: tuple[str, dict[str, Any]],
    rounds: int,
    check: Callable[[dict[str, Any], dict[str, Any]], None],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Time and peak memory of a trainer beside a release of TRL, such as "trl-1.16.0".

    Args:
        worker: the script under workers/ and the request that both sides get first.

    Returns:
        The peer's answers and ours, round by round, for what a benchmark notes besides.
    """
    if peer not in peer_python:
        pytest.skip(f"the environment of {peer} could not be made")
    script, request = worker
    with (
        Worker(peer_python[peer], script, "trl", request) as their_side,
        Worker(Path(sys.executable), script, "fastrl", request) as our_side,
    ):
        theirs, mine = race(benchmark, their_side, our_side, rounds, check)
    benchmark.extra_info.update(row=row, peer=peer.replace("trl-", "TRL "))
    for side, answers in (("peer", theirs), ("fastrl", mine)):
        cpu = [one["cpu_seconds"] for one in answers if "cpu_seconds" in one]
        if cpu:
            benchmark.extra_info[f"{side}_cpu_median"] = statistics.median(cpu)
        benchmark.extra_info[f"{side}_above_bytes"] = max(one["above_bytes"] for one in answers)
        benchmark.extra_info[f"{side}_standing_bytes"] = answers[-1]["standing_bytes"]
    return theirs, mine


def close_to(want: float, got: float, tolerance: float, least: float = 1.0) -> bool:
    """Whether two numbers agree to `tolerance`, relative, and absolute below `least`."""
    return abs(got - want) <= tolerance * max(abs(want), least)
