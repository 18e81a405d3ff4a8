"""A race of one tensor operation: torch as a careful user writes it, against fastrl."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture
from race import Worker, race


def tensor_race(
    benchmark: BenchmarkFixture,
    row: str,
    request: dict[str, Any],
    rounds: int,
    tolerance: float,
) -> None:
    """Race the operation; samples of each result agree to `tolerance`, absolute and relative."""

    def same_result(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
        for part, (want, got) in enumerate(zip(theirs["samples"], ours["samples"], strict=True)):
            for a, b in zip(want, got, strict=True):
                assert math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance), (part, a, b)

    python = Path(sys.executable)
    with (
        Worker(python, "tensor_op.py", "torch", request) as peer,
        Worker(python, "tensor_op.py", "fastrl", request) as ours,
    ):
        race(benchmark, peer, ours, rounds, same_result)
    benchmark.extra_info.update(row=row, peer="torch")
