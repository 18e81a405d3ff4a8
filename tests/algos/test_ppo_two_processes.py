"""Two ranks of fastrl against TRL 0.7.11 launched the same way, and against one rank."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastrl

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures" / "ppo"
sys.path.insert(0, str(HERE))

from ppo_parity import compare  # noqa: E402
from ppo_parity.cases import TWO_PROCESS_CASES, find_case  # noqa: E402
from ppo_parity.running import run_case, scalars, starting_weights  # noqa: E402

NAMES = [case.name for case in TWO_PROCESS_CASES]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two ranks of fastrl wrote. The files are judged, not the exit status."""
    out = tmp_path_factory.mktemp("two_ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(HERE / "ppo_parity" / "record.py")]
    command += ["--two-processes", "--library", "fastrl", "--out", str(out)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, timeout=300, capture_output=True, text=True)
    missing = [name for name in NAMES if not (out / f"{name}.npz").exists()]
    assert not missing, f"no result for {missing}:\n{done.stderr[-4000:]}"
    return out


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_give_trls_numbers(name: str, recorded: Path) -> None:
    for rank in range(2):
        ours = compare.load(recorded, name, rank)
        theirs = compare.load(FIXTURES, name, rank)
        for number, (a, b) in enumerate(zip(ours.steps, theirs.steps, strict=True)):
            errors = compare.scalar_errors(a["scalars"], b["scalars"])
            beyond = {k: v for k, v in errors.items() if not v <= 1}
            assert not beyond, f"{name}, rank {rank}, step {number}: times the limit: {beyond}"


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_give_trls_weights(name: str, recorded: Path) -> None:
    ours, theirs = compare.load(recorded, name, 0), compare.load(FIXTURES, name, 0)
    assert ours.weights.keys() == theirs.weights.keys()
    start = starting_weights(theirs.weights)
    errors = compare.weight_errors(ours.weights, theirs.weights, start)
    beyond = {k: v for k, v in errors.items() if not v <= 1}
    assert not beyond, f"{name}: times the limit: {beyond}"


@pytest.mark.parametrize("name", NAMES)
def test_both_ranks_end_with_the_same_weights(name: str, recorded: Path) -> None:
    first, second = (compare.load(recorded, name, rank) for rank in range(2))
    assert first.digest == second.digest


def test_ranks_with_the_same_rows_equal_one_process(recorded: Path) -> None:
    """The gradient is then the mean of two equal ones. (The KL coefficient is fixed in this case:
    the adaptive controller counts the rows of all ranks, as TRL's does.)"""
    case = dataclasses.replace(find_case("two_ranks_same_rows"), num_processes=1)
    alone = run_case(case, fastrl)
    ours = compare.load(recorded, case.name, 0)
    for a, b in zip(ours.steps, alone.steps, strict=True):
        errors = compare.scalar_errors(a["scalars"], scalars(b))
        assert not {k: v for k, v in errors.items() if not v <= 1}
    moved = {k: v for k, v in alone.end.items() if not np.array_equal(v, alone.start[k])}
    errors = compare.weight_errors(ours.weights, moved, starting_weights(moved))
    assert not {k: v for k, v in errors.items() if not v <= 1}
