"""Runs of the trainers that are driven by `step()`, and what is to be seen of one."""

from __future__ import annotations

import contextlib
import json
import tempfile
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset

import fastrl
from fastrl.train import device_cache
from tests.algos.offline_parity import making
from tests.customisation import runs

BASE: dict[str, Any] = {
    "batch_size": 8,
    "mini_batch_size": 4,
    "ppo_epochs": 2,
    "learning_rate": 1e-2,
    "accelerator_kwargs": {"cpu": True},
}


def _model(factor: float) -> Any:
    base = runs._scaled(making.model("gpt2"), factor)
    model = fastrl.AutoModelForCausalLMWithValueHead.from_pretrained(base)
    torch.nn.init.constant_(model.v_head.summary.weight, 0.1 * factor)
    torch.nn.init.zeros_(model.v_head.summary.bias)
    return model


@contextlib.contextmanager
def _asked(of: Any, name: str) -> Any:
    """The arguments of each call of a method, which is not made."""
    calls: list[Any] = []
    with patch.object(of, name, lambda _, *args, **given: calls.append((args, given))):
        yield calls


@dataclass(frozen=True)
class Outcome:
    """What a user can see of a trainer and two of its steps."""

    stats: list[dict[str, Any]]
    weights: list[float]
    tracked: Any  # what trackers are started with
    accelerator: tuple[Any, ...]
    columns: list[str]
    emptied: int  # times that the device's cache was
    filled: dict[str, Any]  # what config and trainer know after construction


_FILLED = (
    *("world_size", "is_encoder_decoder", "is_peft_model", "backward_batch_size"),
    *("global_backward_batch_size", "global_batch_size", "total_ppo_epochs"),
)


def _rows() -> tuple[list[Any], list[Any], list[Any]]:
    random = np.random.RandomState(3)
    queries = [torch.tensor(random.randint(5, 80, 2 + i % 4)) for i in range(8)]
    responses = [torch.tensor(random.randint(5, 80, 3 + i % 5)) for i in range(8)]
    return queries, responses, [torch.tensor(float(x)) for x in 2 * random.standard_normal(8)]


def run(settings: dict[str, Any]) -> Outcome:
    """Construct and take two steps; `_left` pads in front."""
    fields = {name: value for name, value in settings.items() if not name.startswith("_")}
    tokenizer = making.tokenizer()
    tokenizer.padding_side = "left" if settings.get("_left") else "right"
    data = Dataset.from_dict({"query": ["a"] * 8, "other": ["b"] * 8})
    emptied: list[int] = []
    count = patch.object(device_cache, "empty_device_cache", lambda: emptied.append(1))
    with runs._heard(), _asked(Accelerator, "init_trackers") as tracked, count:
        config = fastrl.PPOConfig(**{**BASE, **fields})
        trainer = fastrl.PPOTrainer(config, _model(1.0), _model(1.1), tokenizer, dataset=data)
        stats = [trainer.step(*_rows()) for _ in range(2)]
    project = trainer.accelerator.project_configuration
    return Outcome(
        [
            {k: np.asarray(v).tolist() for k, v in one.items() if not k.startswith("time/")}
            for one in stats
        ],
        [p.detach().double().abs().sum().item() for p in trainer.model.parameters()],
        [list(given.items()) + list(args) for args, given in tracked],
        (trainer.accelerator.step_scheduler_with_optimizer, project.total_limit),
        list(next(iter(trainer.dataloader))),
        len(emptied),
        {name: getattr(config, name) for name in _FILLED},
    )


_known: dict[str, Outcome] = {}


def outcome(settings: dict[str, Any]) -> Outcome:
    """As `run`, kept for the next that asks the same."""
    key = json.dumps(settings, sort_keys=True, default=str)
    if key not in _known:
        _known[key] = run(settings)
    return _known[key]


@dataclass(frozen=True)
class Steps:
    """What two steps show changes with the value: in their `stats` unless `by` says where."""

    value: Any
    given: dict[str, Any] = field(default_factory=dict)
    by: str = "stats"

    def check(self, name: str) -> None:
        before, after = outcome(self.given), outcome({**self.given, name: self.value})
        assert repr(getattr(after, self.by)) != repr(getattr(before, self.by)), f"{name}: no change"


@dataclass(frozen=True)
class Filled:
    """The trainer fills the field in, whatever it was given, as in TRL."""

    value: Any

    def check(self, name: str) -> None:
        assert outcome({name: self.value}).filled == outcome({}).filled


@dataclass(frozen=True)
class Wrong:
    """Construction raises."""

    value: Any
    said: str

    def check(self, name: str) -> None:
        with pytest.raises(ValueError, match=self.said):
            run({name: self.value})


def log_with(name: str) -> None:
    with pytest.raises(ImportError, match=r"log_with='tensorboard' .*: pip install tensorboard$"):
        run({name: "tensorboard"})


def compared_every(name: str) -> None:
    """Of four improving steps every second one is looked at."""
    pushed: list[int] = []
    publish = {"push_to_hub_if_best_kwargs": {"repo_id": "me/it"}, "ppo_epochs": 1}
    for given, expected in ((1, 4), (2, 2)):
        pushed.clear()
        with (
            runs._heard(),
            patch.object(fastrl.PPOTrainer, "push_to_hub", lambda *_, **__: pushed.append(1)),
        ):
            config = fastrl.PPOConfig(**{**BASE, **publish, name: given})
            trainer = fastrl.PPOTrainer(config, _model(1.0), _model(1.1), making.tokenizer())
            for step in range(4):
                trainer.step(*_rows()[:2], [torch.tensor(float(step))] * 8)
        assert len(pushed) == expected


def statistics_over(name: str) -> None:
    """What reduces over processes is the accelerator, or nobody; test_ppo_global_statistics."""
    for given in (False, True):
        with runs._heard():
            config = fastrl.PPOConfig(**{**BASE, name: given})
            trainer = fastrl.PPOTrainer(config, _model(1.0), None, making.tokenizer())
        assert trainer._statistics_over is (trainer.accelerator if given else None)


# --- IterativeSFTTrainer --------------------------------------------------------------------------


def iterated(**settings: Any) -> SimpleNamespace:
    """One `step()` on a row of 40 tokens: the weights, and the device's cache."""
    model, emptied = making.model("qwen2"), []
    count = patch.object(device_cache, "empty_device_cache", lambda: emptied.append(1))
    with tempfile.TemporaryDirectory() as place, runs._heard(), count:
        args = fastrl.IterativeSFTConfig(place, **{**runs.BASE, **settings})
        trainer = fastrl.IterativeSFTTrainer(model, args, processing_class=making.tokenizer())
        trainer.step(input_ids=[torch.arange(5, 45), torch.arange(6, 46)])
    weights = [p.detach().double().abs().sum().item() for p in trainer.model.parameters()]
    return SimpleNamespace(weights=weights, emptied=len(emptied))


def iterated_cut(name: str) -> None:
    long, short = iterated(), iterated(max_length=10)
    assert short.weights != long.weights
    if name == "truncation_mode":
        assert iterated(max_length=10, truncation_mode="keep_start").weights != short.weights


def iterated_cache(name: str) -> None:
    assert iterated().emptied == 0 and iterated(**{name: True}).emptied > 0


def iterated_loading(name: str) -> None:
    from fastrl.train import setup

    asked = []
    model, value = making.model("qwen2"), {"model_init_kwargs": {"revision": "x"}}.get(name, True)

    def load(_: str, *__: Any, **given: Any) -> Any:
        asked.append(given)
        return model

    with (
        tempfile.TemporaryDirectory() as place,
        patch.object(setup, "create_model_from_path", load),
    ):
        args = fastrl.IterativeSFTConfig(place, **{**runs.BASE, name: value})
        source = str(runs.folder() / "policy")
        fastrl.IterativeSFTTrainer(source, args, processing_class=making.tokenizer())
    (given,) = asked
    assert given["revision"] == "x" if name == "model_init_kwargs" else given[name] is True
