"""Samples of the model's answers, logged while it trains."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from transformers import (
    GenerationConfig,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from fastrl.train.callbacks.samples import complete, prompts_of

NAME = "completions.jsonl"
COLUMNS = ["step", "prompt", "completion"]


class LogCompletionsCallback(TrainerCallback):
    """Every `freq` steps, the model's answers to prompts of the evaluation dataset.

    They go to `output_dir/completions.jsonl`, and as a table to Weights & Biases and Comet if
    `args.report_to` names them. Training itself is unchanged by it, to the bit.

    Args:
        trainer: its `eval_dataset` must have a column `prompt` (texts or messages).
        generation_config: how to generate; None: the model's own way.
        num_prompts: how many of the prompts; None: all.
        freq: steps between samples; None: `args.eval_steps`.

    Raises:
        ValueError: no evaluation dataset, no column `prompt`, no interval.
    """

    def __init__(
        self,
        trainer: Any,
        generation_config: GenerationConfig | None = None,
        num_prompts: int | None = None,
        freq: int | None = None,
    ) -> None:
        self.trainer = trainer
        self.generation_config = generation_config
        self.freq = freq
        self.prompts = prompts_of(trainer, num_prompts, "LogCompletionsCallback")
        self.table: list[list[Any]] = []
        self._last_step = -1
        if freq is None and not trainer.args.eval_steps:
            raise ValueError("LogCompletionsCallback needs freq=, as args.eval_steps is not set")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sample if the interval is over."""
        every = self.freq or state.eval_steps
        if state.global_step == self._last_step or state.global_step % every != 0:
            return
        self._last_step = state.global_step
        found = complete(
            self.trainer, self.prompts, self.generation_config, args.per_device_eval_batch_size
        )
        if not self.trainer.accelerator.is_main_process:
            return
        rows = [[state.global_step, prompt, completion] for prompt, completion in found]
        self.table += rows
        with (Path(args.output_dir) / NAME).open("a", encoding="utf-8") as log:
            log.writelines(json.dumps(dict(zip(COLUMNS, r, strict=True))) + "\n" for r in rows)
        self._report(args.report_to)

    def _report(self, trackers: list[str]) -> None:
        if "wandb" in trackers:
            wandb = importlib.import_module("wandb")
            wandb.log({"completions": wandb.Table(columns=COLUMNS, data=self.table)})
        if "comet_ml" in trackers:
            experiment = importlib.import_module("comet_ml").get_running_experiment()
            if experiment is not None:
                experiment.log_table("completions.csv", tabular_data=self.table, headers=COLUMNS)
