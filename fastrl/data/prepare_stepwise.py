"""Solutions in steps, each marked right or wrong -> tokens with a label where a step ends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from datasets import Dataset, IterableDataset, List, Value

from fastrl.data.chat import tokenizer_of
from fastrl.data.collate import IGNORED
from fastrl.data.formats import column_names, detect_format
from fastrl.data.prepare import TOKENS, Made, first_row, main_process_first, map_rows
from fastrl.data.rows import Rows
from fastrl.data.tokenize import Encoder

_MADE = {"input_ids": TOKENS, "labels": List(Value("int64"))}


@dataclass(frozen=True)
class _StepwiseRows:
    """Rows of prompt, completions and labels -> input_ids and labels."""

    processing_class: Any
    step_separator: str
    last_step_only: bool
    max_length: int | None
    max_prompt_length: int | None
    max_completion_length: int | None
    num_labels: int

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.processing_class)

    @cached_property
    def separator(self) -> list[int]:
        ids = self.encoder.texts([self.step_separator], add_special_tokens=False)[0]
        if not ids:
            raise ValueError(
                f"step_separator={self.step_separator!r} has no token in this vocabulary, so no "
                "token ends a step that could carry its label; give another"
            )
        return ids

    def __call__(self, rows: Rows) -> Made:
        prompts = self.encoder.texts(rows.texts("prompt"), add_special_tokens=False)
        steps, labels = self._steps(rows)
        ids = iter(self.encoder.texts(list(chain(*steps)), add_special_tokens=False))
        bos = tokenizer_of(self.processing_class).bos_token_id
        columns: dict[str, list[Any]] = {"input_ids": [], "labels": []}
        left = []
        for row, prompt in enumerate(prompts):
            prompt = prompt if bos is None else [bos, *prompt]
            if self.max_prompt_length is not None:
                prompt = prompt[-self.max_prompt_length :]
            ended = [[*next(ids), *self.separator] for _ in steps[row]]
            answer = list(chain(*ended))[: self.max_completion_length]
            marks = list(chain(*map(self._marked, ended, labels[row])))[: len(answer)]
            row_ids = [*prompt, *answer][: self.max_length]
            row_labels = [*[IGNORED] * len(prompt), *marks][: self.max_length]
            if row_labels[:1] not in ([], [IGNORED]):
                raise rows.wrong(row, "prompt", "is empty and so is the first step; fill one in")
            if any(label != IGNORED for label in row_labels):
                columns["input_ids"].append(row_ids)
                columns["labels"].append(row_labels)
                left.append(row)
        return columns, left

    @staticmethod
    def _marked(step: list[int], label: int) -> list[int]:
        """The label on a step's last token."""
        return [*[IGNORED] * (len(step) - 1), label]

    def _steps(self, rows: Rows) -> tuple[list[list[str]], list[list[int]]]:
        """Per row its steps and their labels, checked."""
        steps, labels = rows.lists("completions"), rows.lists("labels")
        found = []
        for row, (own, marks) in enumerate(zip(steps, labels, strict=True)):
            if not own:
                raise rows.wrong(row, "completions", "has no steps; filter the row out")
            if any(not isinstance(step, str) for step in own):
                raise rows.wrong(row, "completions", "holds a step that is no text")
            if len(own) != len(marks):
                problem = f"has {len(marks)} entries for {len(own)} completions; give one for each"
                raise rows.wrong(row, "labels", problem)
            if any(mark not in range(self.num_labels) for mark in marks):
                problem = (
                    f"holds {marks}; each must be true or false, or a class of the model from 0 to "
                    f"{self.num_labels - 1}"
                )
                raise rows.wrong(row, "labels", problem)
            marks = [int(mark) for mark in marks]
            if self.last_step_only:
                marks = [IGNORED] * (len(marks) - 1) + marks[-1:]
            found.append(marks)
        return steps, found


def prepare_stepwise(
    dataset: Dataset | IterableDataset,
    processing_class: Any,
    args: Any,
    name: str = "train",
    num_labels: int = 2,
) -> Dataset | IterableDataset:
    """Tokens of prompt and steps with labels, as TRL 0.28's PRMTrainer prepares them.

    A row is BOS, if the tokenizer has one, the prompt and the steps, each followed by the
    separator; its label stands on the separator's last token. Rows that are cut before the first
    label are dropped and counted.

    Args:
        dataset: `prompt`, text, `completions`, a list of texts, and `labels`, a list of true and
            false; or what this returned.
        processing_class: tokenizer, or processor with one.
        args: a `PRMConfig`; read are step_separator, train_on_last_step_only, max_length,
            max_prompt_length, max_completion_length, dataset_num_proc, remove_unused_columns.
        name: what to call the dataset; only in `train` are other steps than the last left out.
        num_labels: how many classes there are.

    Returns:
        Columns `input_ids` and `labels`, -100 where nothing is judged; all others too if
        `remove_unused_columns=False`.

    Raises:
        ValueError: rows or columns that do not fit; they are named.
    """
    row = first_row(dataset, name)
    columns = column_names(dataset)
    if set(_MADE) <= set(columns):
        return dataset
    found = detect_format(columns, row, wanted=("stepwise_supervision",))
    if found.conversational:
        raise ValueError(
            f"the {name} dataset: prompt and completions hold messages; steps are plain texts, "
            "apply the chat template to them first"
        )
    step = _StepwiseRows(
        processing_class=processing_class,
        step_separator=args.step_separator,
        last_step_only=args.train_on_last_step_only and name == "train",
        max_length=args.max_length,
        max_prompt_length=args.max_prompt_length,
        max_completion_length=args.max_completion_length,
        num_labels=num_labels,
    )
    with main_process_first():
        return map_rows(
            dataset,
            step,
            _MADE,
            name=name,
            num_proc=args.dataset_num_proc,
            kept=() if args.remove_unused_columns else columns,
            lost="they are cut before the first label; raise max_length or max_completion_length",
        )
