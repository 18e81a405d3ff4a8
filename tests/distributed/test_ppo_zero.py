"""Classic PPO under DeepSpeed's ZeRO takes the steps that it takes with whole weights."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import ppo_worker

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None,
        reason="deepspeed is not installed; `make test-deepspeed` makes an environment with it",
    ),
]


def start(way: str, folder: Path) -> list[dict[str, Any]]:
    """What each of the two ranks found."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--standalone", ppo_worker.__file__, way, str(folder)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    if way == "ddp":
        environment["ACCELERATE_USE_CPU"] = "true"
    done = subprocess.run(command, env=environment, timeout=300, capture_output=True, text=True)
    files = [folder / f"{rank}.json" for rank in range(2)]
    assert all(file.exists() for file in files), done.stderr[-3000:]
    return [json.loads(file.read_text()) for file in files]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> list[dict[str, Any]]:
    return start("ddp", tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("way", ["zero1", "zero2", "zero3"])
def test_steps_are_those_of_whole_weights(whole: Any, tmp_path: Path, way: str) -> None:
    for rank, (want, got) in enumerate(zip(whole, start(way, tmp_path), strict=True)):
        assert "error" not in got, got["error"]
        assert want.keys() == got.keys() == ppo_worker.CLIPPED.keys()
        for name, steps in want.items():
            for mine, theirs in zip(got[name], steps, strict=True):
                assert mine == pytest.approx(theirs, rel=2e-5, abs=5e-6), (rank, name)
    # Three limits, three ways: each of them counts.
    seconds = [steps[1]["ppo/loss/value"] for steps in whole[0].values()]
    assert len({round(value, 4) for value in seconds}) == 3
