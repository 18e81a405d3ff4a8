"""Runs of DDPO and AlignProp on a tiny pipeline, and what is to be seen of one."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import fastrl
from tests.customisation import runs
from tests.customisation.classic import _asked

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "scripts"))

import tiny_pipeline

BASE: dict[str, Any] = {
    "accelerator_kwargs": {"cpu": True},
    "mixed_precision": "no",
    "num_epochs": 1,
    "sample_num_steps": 2,
    "train_learning_rate": 1e-3,
}
OF: dict[str, dict[str, Any]] = {
    "DDPO": {"sample_batch_size": 2, "sample_num_batches_per_epoch": 1},
    "AlignProp": {"truncated_rand_backprop_minmax": (0, 1), "train_batch_size": 2},
}
TRACKED = {"per_prompt_stat_tracking": True, "sample_batch_size": 4}  # of two prompts


@functools.cache
def _loaded() -> Any:
    """The tiny pipeline."""
    with tempfile.TemporaryDirectory() as place:
        tiny_pipeline.save(Path(place))
        pipeline = fastrl.DefaultDDPOStableDiffusionPipeline(place, use_lora=False)
    pipeline.set_progress_bar_config = lambda **_: None
    pipeline.sd_pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass(frozen=True)
class Outcome:
    """What a user can see of a run."""

    log: list[dict[str, Any]]
    weights: float
    tracked: Any  # what trackers are started with
    checkpoints: list[str]
    shown: list[int]  # steps at which the hook got images
    facts: dict[str, Any]


def _prompt() -> tuple[str, dict[str, Any]]:
    return str(np.random.choice(["cat", "dog"])), {}


def _left_half(images: torch.Tensor, *_: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    return images[..., :8].mean(dim=(1, 2, 3)), {}


def _facts(trainer: Any) -> dict[str, Any]:
    project = trainer.accelerator.project_configuration
    seen = getattr(trainer.stat_tracker, "stats", {})
    return {
        "folder": Path(project.project_dir).name,
        "limit": project.total_limit,
        "scheduler": trainer.accelerator.step_scheduler_with_optimizer,
        "passes": trainer.accelerator.gradient_accumulation_steps,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "threads": getattr(getattr(trainer, "executor", None), "_max_workers", 0),
        "kept": {prompt: len(rewards) for prompt, rewards in seen.items()},
    }


def run(kind: str, settings: dict[str, Any]) -> Outcome:
    """Construct and train."""
    shown: list[int] = []
    AcceleratorState._reset_state()  # or it keeps the last run's precision
    with (
        tempfile.TemporaryDirectory() as place,
        runs._heard(),
        _asked(Accelerator, "init_trackers") as tracked,
    ):
        merged = {**BASE, **OF[kind], **settings}
        merged["logdir"] = str(Path(place) / merged.get("logdir", "logs"))
        config = getattr(fastrl, f"{kind}Config")(**merged)
        pipeline = copy.deepcopy(_loaded())
        trainer = getattr(fastrl, f"{kind}Trainer")(
            config, _left_half, _prompt, pipeline, lambda _, step, __: shown.append(step)
        )
        trainer.train()
        checkpoints = sorted(p.name for p in Path(place).rglob("checkpoint_*"))
    weights = sum(p.detach().double().abs().sum().item() for p in pipeline.unet.parameters())
    log = [{k: v for k, v in row.items() if k != "reward"} for row in trainer.log_history]
    starts = [list(given.items()) + list(args) for args, given in tracked]
    return Outcome(log, weights, starts, checkpoints, shown, _facts(trainer))


_known: dict[str, Outcome] = {}


def outcome(kind: str, settings: dict[str, Any]) -> Outcome:
    """As `run`, kept for the next that asks the same."""
    key = kind + json.dumps(settings, sort_keys=True, default=str)
    if key not in _known:
        _known[key] = run(kind, settings)
    return _known[key]


@dataclass(frozen=True)
class Draws:
    """What a run shows changes with the value: in its `log` unless `by` says where."""

    value: Any
    given: dict[str, Any] = field(default_factory=dict)
    by: str = "log"
    kind: str = "DDPO"

    def check(self, name: str) -> None:
        before = outcome(self.kind, self.given)
        after = outcome(self.kind, {**self.given, name: self.value})
        assert getattr(after, self.by) != getattr(before, self.by), f"{name}: no change"


def tracker(name: str) -> None:
    with pytest.raises(ImportError, match=r"log_with='tensorboard' .*: pip install tensorboard$"):
        run("DDPO", {name: "tensorboard"})


def resumed(name: str) -> None:
    with pytest.raises(ValueError, match="resume_from='nowhere': no checkpoint_N there"):
        run("DDPO", {name: "nowhere"})


def eight_bits(name: str) -> None:
    """Without bitsandbytes an error; with it its optimizer."""
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        run("DDPO", {name: True})
    made: list[Any] = []
    stand_in = SimpleNamespace(
        optim=SimpleNamespace(AdamW8bit=lambda *a, **k: made.append(k) or torch.optim.AdamW(*a))
    )
    found = importlib.util.find_spec
    with (
        patch.dict(sys.modules, {"bitsandbytes": stand_in}),
        patch.object(
            importlib.util,
            "find_spec",
            lambda n, *a: True if n == "bitsandbytes" else found(n, *a),
        ),
    ):
        run("DDPO", {name: True})
    assert made[0]["lr"] == BASE["train_learning_rate"]


def pushed(name: str) -> None:
    """Trained pipelines go to the repository that is named."""
    asked: list[str] = []
    with patch.object(fastrl.DDPOTrainer, "push_to_hub", lambda _, to: asked.append(to)):
        run("DDPO", {})
        run("DDPO", {"run_name": "me/mine", name: True})
    assert asked == ["me/mine"]
