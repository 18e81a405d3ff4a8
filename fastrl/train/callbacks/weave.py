"""Samples of the model's answers, with scores, in W&B Weave."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from statistics import fmean
from typing import Any

from transformers import (
    GenerationConfig,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from fastrl.train.callbacks.samples import complete, prompts_of


class WeaveCallback(TrainerCallback):
    """At every evaluation, logs answers to the evaluation prompts to Weave's EvaluationLogger.

    Args:
        trainer: its `eval_dataset` must have a column `prompt`.
        project_name: where to log; None: the client that is already there, or the project of the
            wandb run.
        scorers: name -> function of (prompt, completion); their means are the summary.
        generation_config: how to generate; None: the model's own way.
        num_prompts: how many of the prompts; None: all.
        dataset_name: how Weave names the dataset.
        model_name: how Weave names the model; None: the name it was loaded by.

    Raises:
        ImportError: the package weave is missing.
        ValueError: no evaluation dataset, no column `prompt`, no project to log to.
    """

    def __init__(
        self,
        trainer: Any,
        project_name: str | None = None,
        scorers: dict[str, Callable[[str, str], float]] | None = None,
        generation_config: GenerationConfig | None = None,
        num_prompts: int | None = None,
        dataset_name: str = "eval_dataset",
        model_name: str | None = None,
    ) -> None:
        if importlib.util.find_spec("weave") is None:
            raise ImportError("WeaveCallback needs the package weave: pip install weave")
        self.trainer = trainer
        self.project_name = project_name
        self.scorers = scorers or {}
        self.generation_config = generation_config
        self.prompts = prompts_of(trainer, num_prompts, "WeaveCallback")
        self.dataset_name = dataset_name
        self.model_name = model_name or getattr(
            trainer.model.config, "_name_or_path", "unknown_model"
        )
        self._last_step = -1

    def _start_client(self) -> None:
        weave = importlib.import_module("weave")
        clients = importlib.import_module("weave.trace.context.weave_client_context")
        if clients.get_weave_client() is not None:
            return
        if self.project_name is None and importlib.util.find_spec("wandb") is not None:
            run = importlib.import_module("wandb").run
            self.project_name = None if run is None else f"{run.entity}/{run.project}"
        if self.project_name is None:
            raise ValueError(
                "WeaveCallback has nowhere to log: give project_name=, or call weave.init(...)"
            )
        weave.init(self.project_name)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Connect, so that a missing project shows before training."""
        if state.is_world_process_zero:
            self._start_client()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Generate on every process, log on the main one."""
        if state.global_step == self._last_step:
            return
        self._last_step = state.global_step
        found = complete(
            self.trainer, self.prompts, self.generation_config, args.per_device_eval_batch_size
        )
        if self.trainer.accelerator.is_main_process:
            self._start_client()
            self._log(found, state.global_step)

    def _log(self, found: list[tuple[str, str]], step: int) -> None:
        generation = self.generation_config
        attributes = {
            "training_step": step,
            "model_name": self.model_name,
            "generation_config": None if generation is None else generation.to_dict(),
        }
        logger = importlib.import_module("weave").EvaluationLogger(
            model=self.model_name, dataset=self.dataset_name, eval_attributes=attributes
        )
        scores: dict[str, list[float]] = {name: [] for name in self.scorers}
        for prompt, completion in found:
            prediction = logger.log_prediction(inputs={"prompt": prompt}, output=completion)
            for name, scorer in self.scorers.items():
                scores[name].append(scorer(prompt, completion))
                prediction.log_score(scorer=name, score=scores[name][-1])
            prediction.finish()
        if not scores:
            logger.finish()
            return
        means = {f"avg_{name}": fmean(values) for name, values in scores.items()}
        logger.log_summary({"total_predictions": len(found), **means})
