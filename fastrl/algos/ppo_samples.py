"""Answers to the evaluation prompts while PPO trains: shown, kept and sent to trackers."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

NAME = "completions.jsonl"
_SHOWN = 5  # rows printed

Row = dict[str, Any]  # "query", "model response", "score"


def show(rows: list[Row], folder: Path, trackers: Sequence[str], step: int) -> None:
    """Append rows to `folder/completions.jsonl`, print some, send all to wandb and Comet.

    The printed table needs the package rich, and is left out without it.

    Args:
        rows: with the same columns.
        folder: made if need be.
        trackers: those the run reports to; others than the two named are not sent to.
        step: of the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("a", encoding="utf-8") as log:
        log.writelines(json.dumps({"step": step, **row}) + "\n" for row in rows)
    columns = list(rows[0]) if rows else []
    table = [[row[name] for name in columns] for row in rows]
    if importlib.util.find_spec("rich") is not None:
        _print(columns, table[:_SHOWN])
    if "wandb" in trackers:
        wandb = importlib.import_module("wandb")
        wandb.log({"completions": wandb.Table(columns=columns, data=table)})
    if "comet_ml" in trackers:
        experiment = importlib.import_module("comet_ml").get_running_experiment()
        if experiment is not None:
            experiment.log_table("completions.csv", tabular_data=table, headers=columns)


def _print(columns: list[str], table: list[list[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(*columns, show_lines=True)
    for row in table:
        shown.add_row(*(Text(str(value)) for value in row))
    Console().print(shown)


class SampleGenerations(TrainerCallback):
    """Calls `trainer.generate_completions` after batch 1 and every so many after it."""

    def __init__(self, trainer: Any, every: int) -> None:
        self._trainer = trainer
        self._every = every

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sample if it is time."""
        if (state.global_step - 1) % self._every == 0:
            self._trainer.generate_completions(sampling=True)
