"""How often a judge prefers the trained model's answers to the reference's."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from transformers import (
    GenerationConfig,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from fastrl.rewards.judges import FAILED
from fastrl.train.agreement import agreed
from fastrl.train.callbacks.samples import complete, prompts_of
from fastrl.train.judging import spoken

NAME = "win_rate_completions.jsonl"
COLUMNS = ["step", "prompt", "reference_model", "policy", "winner_index"]


@contextmanager
def _chance(seed: int) -> Iterator[None]:
    """Python's and numpy's generators seeded inside, and as they were afterwards."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class WinRateCallback(TrainerCallback):
    """At each evaluation logs `eval_win_rate`: how often the answer beats the reference's.

    The reference answers once, when training begins: `trainer.ref_model`, or where there is none
    the model as it then is; it is judged against itself for a start. Rows the judge fails on count
    neither way. All answers go to `output_dir/win_rate_completions.jsonl`, and as a table to
    Weights & Biases and Comet if `args.report_to` names them. Training is unchanged by it.

    Args:
        judge: a pairwise judge; it is asked on the main process, (reference's, trained model's).
        trainer: its `eval_dataset` must have a column `prompt` (texts or messages) or `prompt_ids`.
        generation_config: how to generate; None: the model's own way.
        num_prompts: how many of the prompts; None: all.
        shuffle_order: let the judge see pairs in random order.
        use_soft_judge: ask it for probabilities (`return_scores=True`, see `PairRMJudge`), and log
            their mean as `eval_avg_win_prob` too.

    Raises:
        ValueError: no evaluation dataset, no such column.
        TypeError: for what is no judge.
    """

    def __init__(
        self,
        judge: Any,
        trainer: Any,
        generation_config: GenerationConfig | None = None,
        num_prompts: int | None = None,
        shuffle_order: bool = True,
        use_soft_judge: bool = False,
    ) -> None:
        if not callable(getattr(judge, "judge", None)):
            raise TypeError(f"judge must be a pairwise judge, got {type(judge).__name__}")
        self.judge = judge
        self.trainer = trainer
        self.generation_config = generation_config
        self.shuffle_order = shuffle_order
        self.use_soft_judge = use_soft_judge
        self.prompts = prompts_of(trainer, num_prompts, "WinRateCallback")
        self.ref_completions: list[str] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the reference answer, and judge it against itself."""
        self.ref_completions = []
        self._let_reference_answer(args)
        self._compare(args, state, self.ref_completions)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the trained model answer, and judge it against the reference."""
        self._let_reference_answer(args)
        self._compare(args, state, self._answers(args, None))

    def _let_reference_answer(self, args: TrainingArguments) -> None:
        if not self.ref_completions:
            reference = getattr(self.trainer, "ref_model", None)
            self.ref_completions = self._answers(args, reference)

    def _answers(self, args: TrainingArguments, model: Any) -> list[str]:
        """Those of a model (None: the trained one) to all prompts, on every process."""
        size = args.per_device_eval_batch_size
        found = complete(self.trainer, self.prompts, self.generation_config, size, model)
        return [answer for _, answer in found]

    def _compare(self, args: TrainingArguments, state: TrainerState, answers: list[str]) -> None:
        accelerator, found = self.trainer.accelerator, [None]
        with agreed(accelerator, "judging answers"):
            if accelerator.is_main_process:
                pairs = list(zip(self.ref_completions, answers, strict=True))
                with _chance(args.seed + state.global_step):
                    found = [self._judged(self._asked(), pairs)]
        (places, odds), *_ = broadcast_object_list(found)
        known = [place for place in places if place != FAILED]
        rate = sum(known) / len(known) if known else float("nan")
        logged = {"eval_win_rate": rate}
        if self.use_soft_judge:
            kept = [1.0 - p for p in odds if p != FAILED]
            logged["eval_avg_win_prob"] = sum(kept) / len(kept) if kept else float("nan")
        self.trainer.log(logged)
        if accelerator.is_main_process:
            columns = (self._asked(), self.ref_completions, answers, places)
            rows = [[state.global_step, *row] for row in zip(*columns, strict=True)]
            with (Path(args.output_dir) / NAME).open("a", encoding="utf-8") as log:
                log.writelines(json.dumps(dict(zip(COLUMNS, r, strict=True))) + "\n" for r in rows)
            _report(args.report_to, rows)

    def _judged(
        self, prompts: list[str], pairs: list[tuple[str, str]]
    ) -> tuple[list[int], list[float]]:
        """The place of each winner, 1 where the trained model's answer is; the reference's odds."""
        if not self.use_soft_judge:
            places = [int(p) for p in self.judge.judge(prompts, pairs, self.shuffle_order)]
            self._require(places, len(pairs), {0, 1, FAILED} >= set(places))
            return places, []
        odds = self.judge.judge(prompts, pairs, self.shuffle_order, return_scores=True)
        self._require(odds, len(pairs), all(0 <= p <= 1 or p == FAILED for p in odds))
        return [FAILED if p == FAILED else int(not p > 0.5) for p in odds], list(odds)

    def _require(self, found: list[Any], count: int, known: bool) -> None:
        if len(found) != count or not known:
            kind = "probabilities" if self.use_soft_judge else "0, 1 or -1"
            raise ValueError(
                f"{type(self.judge).__name__} must give {kind} for {count} pairs, got {found}"
            )

    def _asked(self) -> list[str]:
        """The prompts as a judge reads them."""
        tokenizer = self.trainer.processing_class
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        return [_text(prompt, tokenizer) for prompt in self.prompts]


def _text(prompt: Any, tokenizer: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt[0], int):
        return tokenizer.decode(prompt, skip_special_tokens=True)
    return spoken(prompt)


def _report(trackers: list[str], rows: list[list[Any]]) -> None:
    if "wandb" in trackers:
        wandb = importlib.import_module("wandb")
        if wandb.run is not None:
            wandb.log({"win_rate_completions": wandb.Table(columns=COLUMNS, data=rows)})
    if "comet_ml" in trackers:
        experiment = importlib.import_module("comet_ml").get_running_experiment()
        if experiment is not None:
            experiment.log_table("win_rate_completions.csv", tabular_data=rows, headers=COLUMNS)
