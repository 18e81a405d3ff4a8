"""Ranks that share a model's weights generate in lockstep, each its own prompts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parent / "two_ranks" / "worker.py"


@pytest.mark.slow
def test_a_spread_model_generates_as_a_whole_one(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", str(WORKER), str(tmp_path)]
    root = str(WORKER.parents[3])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(command, env=env, timeout=150, capture_output=True, text=True)
    files = [tmp_path / f"{rank}.pt" for rank in range(2)]
    assert all(file.exists() for file in files), done.stderr[-3000:]
    first, second = (torch.load(file) for file in files)
    for rank in (first, second):
        assert rank["together"] == rank["again"] == rank["alone"]
    # rank 1 has 1 prompt and 2 more tokens to feed; the rest it passes along
    assert first["passes"] == second["passes"] > 14
