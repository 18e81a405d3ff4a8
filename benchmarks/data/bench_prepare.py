"""Preparation of 20,000 conversations for SFT against TRL 1.16: template, tokenizer, truncation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from race import WORKERS, Worker, race

sys.path.insert(0, str(WORKERS))

import prepare


def same_rows(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """The same ids in the same rows."""
    assert (theirs["rows"], theirs["digest"]) == (ours["rows"], ours["digest"])


def bench_prepare(
    benchmark: BenchmarkFixture, seed: int, peer_python: dict[str, Path], tmp_path: Path
) -> None:
    """New conversations and a new tokenizer object each round, from one tokenizer file."""
    if "trl-1.16.0" not in peer_python:
        pytest.skip("the environment of trl-1.16.0 could not be made")
    prepare.write_tokenizer(tmp_path / "tokenizer.json")
    request = {"seed": seed, "rows": 20_000, "tokenizer": str(tmp_path / "tokenizer.json")}
    with (
        Worker(peer_python["trl-1.16.0"], "prepare.py", "trl", request) as peer,
        Worker(Path(sys.executable), "prepare.py", "fastrl", request) as ours,
    ):
        race(benchmark, peer, ours, rounds=3, check=same_rows)
    benchmark.extra_info.update(row="SFTTrainer of 20k conversations", peer="TRL 1.16.0")
