"""Weights in shares on two ranks train as whole ones do: FSDP2, and DeepSpeed's ZeRO if installed.

Losses, gradient norms, metrics and saved weights of every trainer against the same run under DDP.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed import worker
from tests.distributed.launching import two_ranks

pytestmark = pytest.mark.slow
TASKS = {
    "ddp": list(worker.TASKS),
    "fsdp2": list(worker.TASKS),
    "fsdp2_lean": ["lora_sft", "dpo", "reward", "grpo"],
    "zero1": ["scripted_grpo"],
    "zero2": ["packed_sft", "dpo", "dpo_given", "reward", "grpo", "scripted_grpo"],
    "zero3": ["packed_sft", "lora_sft", "dpo", "dpo_given", "reward", "grpo", "scripted_grpo"],
}
TIMED = ("runtime", "per_second", "flos", "step_time")
without_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="deepspeed is not installed; `make test-deepspeed` makes an environment with it",
)

Runs = Callable[[str], dict[str, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: Any) -> Runs:
    """What both ranks found of each task of a way, which is run once."""
    known: dict[str, dict[str, list[dict[str, Any]]]] = {}

    def of(way: str) -> dict[str, list[dict[str, Any]]]:
        if way not in known:
            known[way] = start(way, tmp_path_factory.mktemp(way))
        return known[way]

    return of


def start(way: str, folder: Path) -> dict[str, list[dict[str, Any]]]:
    said = two_ranks(worker.__file__, way, str(folder), *TASKS[way])
    found: dict[str, list[dict[str, Any]]] = {}
    for task in TASKS[way]:
        files = [folder / task / f"{rank}.pt" for rank in range(2)]
        assert all(file.exists() for file in files), (task, said[-3000:])
        found[task] = [torch.load(file, weights_only=False) for file in files]
        for rank in found[task]:
            assert "error" not in rank, (task, rank["error"])
        (saved,) = (folder / task / "saved").glob("*.safetensors")
        found[task][0]["weights"] = load_file(saved)
    return found


def steps(found: dict[str, Any]) -> list[dict[str, float]]:
    return [
        {key: value for key, value in entry.items() if not any(part in key for part in TIMED)}
        for entry in found["logs"]
        if "loss" in entry
    ]


def equal(got: list[dict[str, float]], want: list[dict[str, float]]) -> None:
    assert len(got) == len(want) == worker.STEPS
    for mine, theirs in zip(got, want, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-5, abs=5e-6)


WAYS = [
    pytest.param(way, task, marks=without_deepspeed if way.startswith("zero") else ())
    for way in ("fsdp2", "fsdp2_lean", "zero1", "zero2", "zero3")
    for task in TASKS[way]
    if task != "halved_sft"
]


@pytest.mark.parametrize(("way", "task"), WAYS)
def test_shares_train_as_whole_weights_do(runs: Runs, way: str, task: str) -> None:
    want, got = runs("ddp")[task][0], runs(way)[task][0]
    assert got["packed"] and not want["spread"]
    assert got["spread"] == (way not in ("zero1", "zero2"))
    equal(steps(got), steps(want))
    weights, others = want["weights"], got["weights"]
    assert set(weights) <= set(others)  # DeepSpeed saves a tied head once more
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-5, atol=5e-6, msg=name)


@pytest.mark.parametrize(
    ("way", "task"), [p for p in WAYS if p.values[0] != "zero1" and p.values[1] in worker.RESUMED]
)
def test_a_run_in_shares_goes_on_from_its_checkpoint(runs: Runs, way: str, task: str) -> None:
    found = runs(way)[task][0]
    equal(steps({"logs": found["resumed"]}), steps(found))


def test_fsdp2_leaves_log_probabilities_in_fp32(runs: Runs) -> None:
    for rank in runs("fsdp2")["halved_sft"]:
        assert rank["dtypes"] == {torch.float32}
    halved, whole = (steps(runs(way)["halved_sft"][0]) for way in ("fsdp2", "ddp"))
    assert halved[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-3)
