"""Pairs of answers -> tokens as ORPO and CPO take them: each answer in one row with its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datasets import Dataset, IterableDataset, List, Value

from fastrl.data.chat import apply_chat_template, tokenizer_of
from fastrl.data.collate import IGNORED
from fastrl.data.formats import column_names, common_length, detect_format, extract_prompt
from fastrl.data.prepare import TOKENS, Made, first_row, main_process_first, map_rows
from fastrl.data.prepare_preference import eos_of
from fastrl.data.rows import Rows
from fastrl.data.tokenize import Encoder, TokenLists

_SIDES = ("chosen", "rejected")
_ONES = List(Value("int8"))
# The columns of TRL's, which collators of users' own may read.
MADE = {
    "prompt_input_ids": TOKENS,
    "prompt_attention_mask": _ONES,
    **{
        f"{side}_{name}": _ONES if name == "attention_mask" else TOKENS
        for side in _SIDES
        for name in ("input_ids", "attention_mask", "labels")
    },
}


def answer_begin(prompt: Sequence[int], whole: Sequence[int]) -> int:
    """Where the answer begins among the tokens of prompt and answer together.

    A tokenizer may merge the end of the prompt with the beginning of the answer; the merged token
    then is the answer's first.

    Args:
        prompt: tokens of the prompt alone.
        whole: tokens of prompt + answer.
    """
    if whole[: len(prompt)] == prompt:
        return len(prompt)
    if len(whole) >= len(prompt):
        return len(prompt) - 1
    return common_length(prompt, whole)


@dataclass(frozen=True)
class Limits:
    """How long rows may be; None: no limit."""

    row: int | None
    answer: int | None
    prompt: int | None  # cuts prompts of rows that are too long, before their answers
    keep_end: bool  # of such a prompt

    def cut(self, prompts: TokenLists, answers: TokenLists) -> tuple[TokenLists, TokenLists]:
        """The prompt before each answer (and any more prompts), and the answers, of one pair."""
        if self.answer is not None:
            answers = [own[: self.answer] for own in answers]
        if self.row is None:
            return prompts, answers
        if self.prompt is None:
            rooms = [max(0, self.row - len(own)) for own in prompts]
            return prompts, [own[:room] for own, room in zip(answers, rooms, strict=False)]
        longest = max(map(len, answers))
        kept = slice(-self.prompt, None) if self.keep_end else slice(self.prompt)
        prompts = [own[kept] if len(own) + longest > self.row else own for own in prompts]
        pairs = zip(prompts, answers, strict=False)
        room = self.row - self.prompt
        return prompts, [a[:room] if len(p) + longest > self.row else a for p, a in pairs]


@dataclass(frozen=True)
class _PairRows:
    """Rows -> the columns of `MADE`."""

    processing_class: Any
    implicit: bool  # the prompt is in both answers
    conversational: bool
    bos: int | None
    eos: int
    limits: Limits
    revision: int = 1  # part of the cache's key; raised when the same rows give others

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.processing_class)

    def __call__(self, rows: Rows) -> Made:
        prompts, *answers = self._texts(rows)
        encode = self.encoder.texts
        prompt_ids = encode(prompts, add_special_tokens=False)
        whole = [
            encode([a + b for a, b in zip(prompts, texts, strict=True)], add_special_tokens=False)
            for texts in answers
        ]
        made = [self._row(*parts) for parts in zip(prompt_ids, *whole, strict=True)]
        self._check_contexts(rows, made)
        left = [row for row, columns in enumerate(made) if columns]
        return {name: [made[row][name] for row in left] for name in MADE}, left

    def _row(
        self, prompt: list[int], chosen: list[int], rejected: list[int]
    ) -> dict[str, list[int]]:
        """The columns of a pair; none if an answer has no room."""
        sides = (chosen, rejected)
        begins = [answer_begin(prompt, own) for own in sides]
        prompts = [own[:begin] for own, begin in zip(sides, begins, strict=True)]
        prompts = [self._begun(own) for own in (*prompts, prompt[: min(begins)])]
        answers = [self._ended(own[begin:]) for own, begin in zip(sides, begins, strict=True)]
        prompts, answers = self.limits.cut(prompts, answers)
        if not all(answers):
            return {}
        row = {"prompt_input_ids": prompts[2], "prompt_attention_mask": [1] * len(prompts[2])}
        for side, before, answer in zip(_SIDES, prompts[:2], answers, strict=True):
            row[f"{side}_input_ids"] = before + answer
            row[f"{side}_attention_mask"] = [1] * (len(before) + len(answer))
            row[f"{side}_labels"] = [IGNORED] * len(before) + answer
        return row

    @staticmethod
    def _check_contexts(rows: Rows, made: list[dict[str, list[int]]]) -> None:
        """A row's first token has nothing before it that it could be learnt from."""
        for row, columns in enumerate(made):
            for side in _SIDES:
                if columns and set(columns[f"{side}_labels"][1:]) <= {IGNORED}:
                    problem = (
                        "has no token but its first, before which nothing stands (no prompt, no "
                        "BOS), so none has a log-probability; filter the row out"
                    )
                    raise rows.wrong(row, side, problem)

    def _begun(self, prompt: list[int]) -> list[int]:
        """A prompt that begins with BOS, if there is one."""
        begun = self.bos is None or prompt[:1] == [self.bos]
        return prompt if begun else [self.bos, *prompt]

    def _ended(self, answer: list[int]) -> list[int]:
        """An answer that ends with EOS."""
        return answer if answer[-1:] == [self.eos] else [*answer, self.eos]

    def _texts(self, rows: Rows) -> tuple[list[str], ...]:
        """Prompts and both answers as text, conversations rendered."""
        names = _SIDES if self.implicit else ("prompt", *_SIDES)
        read = rows.chats if self.conversational else rows.texts
        columns = {name: read(name) for name in names}
        given = [
            dict(zip(columns, parts, strict=True)) for parts in zip(*columns.values(), strict=True)
        ]
        if self.implicit:
            given = [extract_prompt(example) for example in given]
        if self.conversational:
            arguments = rows.template_arguments()
            given = [self._rendered(rows, i, given[i], arguments[i]) for i in range(len(rows))]
        return tuple([example[name] for example in given] for name in ("prompt", *_SIDES))

    def _rendered(
        self, rows: Rows, row: int, example: dict[str, Any], arguments: dict[str, Any]
    ) -> dict[str, str]:
        try:
            return apply_chat_template(example, self.processing_class, **arguments)
        except Exception as error:
            raise rows.wrong(row, "prompt", f"cannot be rendered: {error}") from error


def prepare_pairs(
    dataset: Dataset | IterableDataset, processing_class: Any, args: Any, name: str = "train"
) -> Dataset | IterableDataset:
    """Both answers of every pair in one row with their prompt, as TRL's ORPO and CPO prepare them.

    Conversations are rendered as text first. Prompt and answer are encoded together without special
    tokens; then each row begins with BOS and ends with EOS, if it does not yet. Only answers are
    cut to `max_length`, unless `max_prompt_length` is set: then of pairs that are too long the
    prompt is cut to it, and answers to what is left. Pairs with an answer that has no room are
    dropped and counted.

    Args:
        dataset: `prompt`, `chosen` and `rejected`, or the prompt within both, texts or messages
            (`tools` and `chat_template_kwargs` per row); what is prepared already is returned.
        processing_class: tokenizer, or processor with one.
        args: an `ORPOConfig` or `CPOConfig`; read are max_length, max_completion_length,
            max_prompt_length, truncation_mode, dataset_num_proc, remove_unused_columns.
        name: what to call the dataset.

    Returns:
        Columns `prompt_input_ids`, `prompt_attention_mask`, and for chosen and rejected
        `_input_ids`, `_attention_mask` and `_labels` (-100 on the prompt); all others too if
        `remove_unused_columns=False`.

    Raises:
        ValueError: rows or columns that do not fit; they are named.
    """
    row = first_row(dataset, name)
    columns = column_names(dataset)
    if set(MADE) <= set(columns):
        return dataset
    found = detect_format(columns, row, wanted=("preference", "preference_implicit"))
    tokenizer = tokenizer_of(processing_class)
    eos_of(processing_class)
    step = _PairRows(
        processing_class=processing_class,
        implicit=found.kind == "preference_implicit",
        conversational=found.conversational,
        bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id,
        limits=Limits(
            row=args.max_length,
            answer=args.max_completion_length,
            prompt=args.max_prompt_length,
            keep_end=args.truncation_mode == "keep_end",
        ),
    )
    with main_process_first():
        return map_rows(
            dataset,
            step,
            MADE,
            name=name,
            num_proc=args.dataset_num_proc,
            kept=() if args.remove_unused_columns else columns,
            lost=f"the prompt alone fills max_length={args.max_length} tokens",
        )
