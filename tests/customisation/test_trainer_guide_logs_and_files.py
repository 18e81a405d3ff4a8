"""Callbacks, logs, checkpoints and uploads as the guide of `transformers.Trainer` has them."""

from __future__ import annotations

import logging as python_logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
import transformers
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from fastrl import DPOConfig, GRPOConfig, RewardConfig, SFTConfig, SFTTrainer, TrlParser
from tests.algos.offline_parity import making
from tests.customisation.guide_runs import SETTINGS, build, losses, rows

# --- callbacks and loggers ------------------------------------------------------------------------


class Events(TrainerCallback):
    """Keeps the names of what happened; stops the run when told to."""

    def __init__(self, stop_at: int = 99) -> None:
        self.seen: list[str] = []
        self.stop_at = stop_at

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self.seen.append("step")
        control.should_training_stop = state.global_step >= self.stop_at
        return control

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.seen.append("begin")

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self.seen.append("evaluate")

    def on_save(self, *_: Any, **__: Any) -> None:
        self.seen.append("save")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
        self.seen.append("log" if "loss" in logs else "summary")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seen.append("end")


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_callbacks(tmp_path, kind):
    events = Events(stop_at=2)
    steps = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = build(tmp_path, kind, more={"callbacks": [events]}, max_steps=5, **steps)
    trainer.train()
    assert events.seen == [
        *("begin", "step", "log", "step", "log"),
        *("summary", "evaluate", "save", "summary", "end"),
    ]
    assert trainer.pop_callback(Events) is events


def test_loggers_by_report_to(tmp_path, monkeypatch):
    """A logger of `report_to` gets what the trainer logs; an unknown one is refused."""
    told: list[dict[str, Any]] = []

    class Logger(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
            told.append(dict(logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Logger)
    build(tmp_path, report_to="wandb").train()
    assert [entry["loss"] > 0 for entry in told if "loss" in entry] == [True, True]
    assert {"num_tokens", "mean_token_accuracy", "entropy"} <= told[0].keys()
    with pytest.raises(ValueError, match="nothing is not supported"):
        build(tmp_path, report_to=["nothing"])


# --- the log level --------------------------------------------------------------------------------


@pytest.fixture
def verbosity() -> Any:
    """transformers' own and that of datasets, put back at the end."""
    kept = [(each, each.get_verbosity()) for each in (transformers.logging, datasets.logging)]
    yield
    for each, before in kept:
        each.set_verbosity(before)


# Command line -> levels of (main process, another of its node, main of another node).
LEVELS = {
    "--log_level warning --log_level_replica error": (30, 40, 30),
    "--log_level warning --log_level_replica error --log_on_each_node 0": (30, 40, 40),
    "--log_level error --log_level_replica error --log_on_each_node 0": (40, 40, 40),
}


@pytest.mark.parametrize("line", LEVELS)
@pytest.mark.parametrize("config", [SFTConfig, DPOConfig, RewardConfig, GRPOConfig])
def test_log_level_replica(line, config, monkeypatch, verbosity):
    parsed = ["--output_dir", "out", "--use_cpu", "--report_to", "none", *line.split()]
    (args,) = TrlParser((config,)).parse_args_and_config(args=parsed)
    seen = []
    for index, local in ((0, 0), (1, 1), (2, 0)):
        monkeypatch.setattr(config, "process_index", property(lambda _, at=index: at))
        monkeypatch.setattr(config, "local_process_index", property(lambda _, at=local: at))
        seen.append(args.get_process_log_level())
    assert tuple(seen) == LEVELS[line]


def test_get_process_log_level_is_what_the_trainer_sets(tmp_path, verbosity):
    for level in ("info", "error"):
        trainer = build(tmp_path, log_level=level)
        wanted = getattr(python_logging, level.upper())
        assert trainer.args.get_process_log_level() == wanted
        assert transformers.logging.get_verbosity() == wanted


@pytest.mark.parametrize(("index", "level"), [(0, 30), (1, 40)])
def test_the_guides_lines_for_a_scripts_own_loggers(
    tmp_path, monkeypatch, verbosity, caplog, index, level
):
    """A replica says errors only, in the script, in datasets and in transformers; trainers too."""
    logger = python_logging.getLogger("my_app")
    monkeypatch.setattr(SFTConfig, "process_index", property(lambda _: index))
    monkeypatch.setattr(SFTConfig, "local_process_index", property(lambda _: index))
    levels = {"log_level": "warning", "log_level_replica": "error"}
    training_args = SFTConfig(str(tmp_path), **SETTINGS, **levels)

    log_level = training_args.get_process_log_level()
    logger.setLevel(log_level)
    datasets.utils.logging.set_verbosity(log_level)
    transformers.utils.logging.set_verbosity(log_level)

    parts = {"train_dataset": rows("sft", 4), "processing_class": making.tokenizer()}
    SFTTrainer(making.model("qwen2"), args=training_args, **parts)
    assert datasets.utils.logging.get_verbosity() == level
    assert transformers.utils.logging.get_verbosity() == level
    logger.warning("from the script")
    assert ("from the script" in caplog.text) == (level == 30)


# --- checkpoints ----------------------------------------------------------------------------------


def test_resume_from_checkpoint_of_a_folder(tmp_path):
    """`=True` is in test_trainer.py; a folder named is the one taken, of several."""
    steps = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    whole = build(tmp_path, **steps)
    whole.train()
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == [
        f"checkpoint-{step}" for step in (1, 2, 3)
    ]
    resumed = build(tmp_path / "again", **{**steps, "save_strategy": "no"})
    begun = []
    resumed.add_callback(
        type("Begin", (TrainerCallback,), {"on_step_begin": lambda *a, **k: begun.append(a[2])})()
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert len(begun) == 2
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-6)
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, whole.model.get_parameter(name)), name
    with pytest.raises(ValueError, match="No valid checkpoint"):
        build(tmp_path / "empty").train(resume_from_checkpoint=True)


class Hub:
    """In place of the hub: keeps what is uploaded."""

    def __init__(self) -> None:
        self.repositories: list[str] = []
        self.uploads: list[dict[str, Any]] = []

    def create_repo(self, name: str, **_: Any) -> Any:
        self.repositories.append(name)
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(self, **given: Any) -> Any:
        folder = Path(given["folder_path"])
        files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        self.uploads.append({**given, "files": files})
        return SimpleNamespace(is_done=lambda: True, result=lambda: None, _done=True)


# hub_strategy -> path in the repository of what is uploaded in a run of two checkpoints.
STRATEGIES = {
    "end": [],
    "every_save": [None, None],
    "checkpoint": [None, "last-checkpoint", None, "last-checkpoint"],
    "all_checkpoints": [None, "checkpoint-1", None, "checkpoint-2"],
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_hub_strategy(tmp_path, monkeypatch, strategy):
    hub = Hub()
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: hub)
    jobs = "transformers.trainer.PushInProgress"
    monkeypatch.setattr(jobs, lambda _: SimpleNamespace(is_done=lambda: True, jobs=[]))
    trainer = build(
        tmp_path / "mine", push_to_hub=True, hub_strategy=strategy, hub_token="key",
        save_strategy="steps", save_steps=1,
    )  # fmt: skip
    trainer.train()
    assert hub.repositories == ["mine"]
    assert [upload.get("path_in_repo") for upload in hub.uploads] == STRATEGIES[strategy]
    assert all(u["repo_id"] == "me/mine" and u["token"] == "key" for u in hub.uploads)
    for upload in hub.uploads:
        whole = {"model.safetensors", "config.json", "tokenizer.json"}
        assert whole <= set(upload["files"])
        assert ("optimizer.pt" in upload["files"]) == (upload.get("path_in_repo") is not None)
        assert upload.get("path_in_repo") or "README.md" in upload["files"]
    monkeypatch.setattr(trainer, "push_in_progress", None)
    trainer.push_to_hub(commit_message="done", dataset_name="rows", tags="mine")
    assert hub.uploads[-1]["commit_message"] == "done"
    assert "- mine" in (tmp_path / "mine" / "README.md").read_text()
