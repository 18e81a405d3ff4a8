"""Classic PPO under DeepSpeed's ZeRO takes the steps that it takes with whole weights."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import ppo_worker
from tests.distributed.launching import two_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None,
        reason="deepspeed is not installed; `make test-deepspeed` makes an environment with it",
    ),
]


def start(way: str, folder: Path) -> list[dict[str, Any]]:
    """What each of the two ranks found."""
    said = two_ranks(ppo_worker.__file__, way, str(folder))
    files = [folder / f"{rank}.json" for rank in range(2)]
    assert all(file.exists() for file in files), said[-3000:]
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
