"""What every benchmark gets: this run's seed, and the peers' interpreters."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import environments


def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed once, so that one process has one."""
    os.environ.setdefault("FASTRL_BENCH_SEED", str(int.from_bytes(os.urandom(3), "big")))


def pytest_report_header(config: pytest.Config) -> str:
    """The seed, to repeat a run with FASTRL_BENCH_SEED."""
    return f"FASTRL_BENCH_SEED={os.environ['FASTRL_BENCH_SEED']}"


@pytest.fixture(scope="session")
def seed() -> int:
    """The seed of this run's lengths and values."""
    return int(os.environ["FASTRL_BENCH_SEED"])


@pytest.fixture(scope="session")
def peer_python() -> dict[str, Path]:
    """Interpreter by peer; a benchmark whose peer has none is skipped."""
    return {peer.name: peer.python for peer in environments.PEERS if peer.python.exists()}
