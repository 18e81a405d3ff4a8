"""Pairs of answers -> tokens, for DPO (prompt and answers apart) and for reward models."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datasets import Dataset, IterableDataset, Value

from fastrl.data.chat import tokenizer_of
from fastrl.data.formats import Format, column_names, detect_format, extract_prompt
from fastrl.data.prepare import TOKENS, Made, first_row, main_process_first, map_rows, only
from fastrl.data.rows import Rows, split_points, with_eos
from fastrl.data.tokenize import Encoder

_PAIRS = ("preference", "preference_implicit")
_REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
# Columns of tokenised pairs in older releases: (chosen, rejected) and the masks of their padding.
_OLD_COLUMNS = (
    (
        ("chosen_input_ids", "rejected_input_ids"),
        ("chosen_attention_mask", "rejected_attention_mask"),
    ),
    (
        ("input_ids_chosen", "input_ids_rejected"),
        ("attention_mask_chosen", "attention_mask_rejected"),
    ),
)


def eos_of(processing_class: Any) -> str:
    """What ends an answer that is plain text."""
    eos = tokenizer_of(processing_class).eos_token
    if eos is None:
        raise ValueError("the tokenizer has no eos_token to end texts with; set one")
    return eos


@dataclass(frozen=True)
class _PreferenceRows:
    """Rows -> prompt_ids, chosen_ids and rejected_ids."""

    processing_class: Any
    kind: str  # "tokenized", "preference" or "preference_implicit"
    conversational: bool
    eos: str | None
    longest_prompt: int | None  # rows with a longer one are dropped
    revision: int = 1  # part of the cache's key; raised when the same rows give others

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.processing_class)

    def __call__(self, rows: Rows) -> Made:
        if self.kind == "tokenized":
            names = ("prompt_ids", "chosen_ids", "rejected_ids")
            columns = {name: rows.lists(name) for name in names}
        else:
            columns = self._tokens(rows)
        prompts = columns["prompt_ids"]
        limit = self.longest_prompt
        left = [row for row, ids in enumerate(prompts) if limit is None or len(ids) <= limit]
        return only(columns, left), left

    def _tokens(self, rows: Rows) -> dict[str, list[Any]]:
        prompts, chosen, rejected = self._parts(rows)
        whole = {
            "chosen": [a + b for a, b in zip(prompts, chosen, strict=True)],
            "rejected": [a + b for a, b in zip(prompts, rejected, strict=True)],
        }
        if self.conversational:
            prompt_ids = rows.encode_prompts(self.encoder, prompts)
            ids = {
                side: rows.encode_chats(self.encoder, side, chats, repeated=True)
                for side, chats in whole.items()
            }
        else:
            prompt_ids = self.encoder.texts(prompts)
            ids = {side: self.encoder.texts(texts) for side, texts in whole.items()}
        points = split_points(rows, self.processing_class, prompt_ids, *ids.values())
        return {
            "prompt_ids": [own[:k] for k, own in zip(points, prompt_ids, strict=True)],
            "chosen_ids": [own[k:] for k, own in zip(points, ids["chosen"], strict=True)],
            "rejected_ids": [own[k:] for k, own in zip(points, ids["rejected"], strict=True)],
        }

    def _parts(self, rows: Rows) -> tuple[list[Any], list[Any], list[Any]]:
        """Prompts and both answers, texts ended by the end-of-sequence token."""
        read: Callable[[str], list[Any]] = rows.chats if self.conversational else rows.texts
        chosen, rejected = read("chosen"), read("rejected")
        if self.kind == "preference":
            prompts = read("prompt")
        else:
            split = [
                extract_prompt({"chosen": a, "rejected": b})
                for a, b in zip(chosen, rejected, strict=True)
            ]
            prompts, chosen, rejected = (
                [row[side] for row in split] for side in ("prompt", "chosen", "rejected")
            )
        if self.conversational:
            return prompts, chosen, rejected
        return prompts, with_eos(chosen, self.eos), with_eos(rejected, self.eos)


def _eos_for(processing_class: Any, found: Format) -> str | None:
    return None if found.conversational or found.kind == "tokenized" else eos_of(processing_class)


def prepare_preference(
    dataset: Dataset | IterableDataset, processing_class: Any, args: Any, name: str = "train"
) -> Dataset | IterableDataset:
    """Prompt and answers of every pair, as TRL 1.16's DPOTrainer prepares them.

    A prompt that both sides begin with is split off; texts end with the end-of-sequence token; the
    answers begin where the tokens of the prompt and of prompt + answer part. Pairs whose prompt
    leaves no room within `max_length` are dropped and counted, unless `truncation_mode` is
    keep_end. Cutting to `max_length` is the collator's part.

    Args:
        dataset: `prompt`, `chosen` and `rejected`, or the prompt within both, texts or messages
            (`tools` and `chat_template_kwargs` per row); or `prompt_ids`, `chosen_ids` and
            `rejected_ids`.
        processing_class: tokenizer, or processor with one.
        args: a `DPOConfig`; read are max_length, truncation_mode, dataset_num_proc,
            remove_unused_columns.
        name: what to call the dataset.

    Returns:
        Columns `prompt_ids`, `chosen_ids`, `rejected_ids`, and `ref_chosen_logps` and
        `ref_rejected_logps` where given; all others too if `remove_unused_columns=False`.

    Raises:
        ValueError: rows or columns that do not fit; they are named.
    """
    row = first_row(dataset, name)
    columns = column_names(dataset)
    made = ("prompt_ids", "chosen_ids", "rejected_ids")
    kinds = ("tokenized", *_PAIRS) if set(made) <= set(columns) else _PAIRS
    found = detect_format(columns, row, wanted=kinds)
    limit = args.max_length if args.truncation_mode == "keep_start" else None
    step = _PreferenceRows(
        processing_class=processing_class,
        kind=found.kind,
        conversational=found.conversational,
        eos=_eos_for(processing_class, found),
        longest_prompt=None if limit is None else limit - 1,
    )
    kept = [column for column in _REFERENCE if column in columns]
    with main_process_first():
        return map_rows(
            dataset,
            step,
            dict.fromkeys(made, TOKENS),
            name=name,
            num_proc=args.dataset_num_proc,
            kept=kept if args.remove_unused_columns else columns,
            lost=f"the prompt alone fills max_length={args.max_length} tokens",
        )


@dataclass(frozen=True)
class _RewardRows:
    """Rows -> chosen_ids, rejected_ids and, where given, margin."""

    processing_class: Any
    kind: str  # "tokenized", "preference" or "preference_implicit"
    conversational: bool
    sides: tuple[str, str]  # the columns of the two sides
    masks: tuple[str, ...]  # of their attention masks, if they may hold padding
    margin: bool
    eos: str | None
    max_length: int | None
    revision: int = 1  # part of the cache's key; raised when the same rows give others

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.processing_class)

    def __call__(self, rows: Rows) -> Made:
        chosen, rejected = (self._side(rows, index) for index in (0, 1))
        columns: dict[str, list[Any]] = {"chosen_ids": chosen, "rejected_ids": rejected}
        if self.margin:
            columns["margin"] = rows.numbers_of("margin")
        limit = self.max_length
        left = [
            row
            for row, pair in enumerate(zip(chosen, rejected, strict=True))
            if limit is None or max(map(len, pair)) <= limit
        ]
        return only(columns, left), left

    def _side(self, rows: Rows, index: int) -> list[list[int]]:
        column = self.sides[index]
        if self.kind == "tokenized":
            ids = rows.lists(column)
            if not self.masks:
                return ids
            masks = rows.lists(self.masks[index])
            return [
                [token for token, bit in zip(own, mask, strict=True) if bit]
                for own, mask in zip(ids, masks, strict=True)
            ]
        read: Callable[[str], list[Any]] = rows.chats if self.conversational else rows.texts
        values = read(column)
        if self.kind == "preference":
            values = [a + b for a, b in zip(read("prompt"), values, strict=True)]
        if self.conversational:
            return rows.encode_chats(self.encoder, column, values, repeated=True)
        return self.encoder.texts(with_eos(values, self.eos))


def _tokenised_columns(columns: list[str]) -> Mapping[str, Any]:
    """Where tokenised pairs are: today's columns or, with a warning, those of older releases."""
    if {"chosen_ids", "rejected_ids"} <= set(columns):
        return {"sides": ("chosen_ids", "rejected_ids"), "masks": ()}
    for sides, masks in _OLD_COLUMNS:
        if set(sides) <= set(columns):
            warnings.warn(
                f"columns {sides[0]!r} and {sides[1]!r} are now called 'chosen_ids' and "
                "'rejected_ids'; rename them with dataset.rename_columns",
                FutureWarning,
                stacklevel=4,
            )
            return {"sides": sides, "masks": masks if set(masks) <= set(columns) else ()}
    return {}


def prepare_reward(
    dataset: Dataset | IterableDataset, processing_class: Any, args: Any, name: str = "train"
) -> Dataset | IterableDataset:
    """Tokens of both sides of every pair, as TRL 1.16's RewardTrainer prepares them.

    Each side is prompt and answer together; texts end with the end-of-sequence token. Pairs with a
    side longer than `max_length` are dropped and counted.

    Args:
        dataset: `chosen` and `rejected`, with or without `prompt`, texts or messages (`tools` and
            `chat_template_kwargs` per row); or tokens in `chosen_ids` and `rejected_ids` (or the
            older `input_ids_chosen`, `chosen_input_ids` and their like); `margin` by choice.
        processing_class: tokenizer, or processor with one.
        args: a `RewardConfig`; read are max_length, dataset_num_proc, remove_unused_columns.
        name: what to call the dataset.

    Returns:
        Columns `chosen_ids`, `rejected_ids` and, where given, `margin`; all others too if
        `remove_unused_columns=False`.

    Raises:
        ValueError: rows or columns that do not fit; they are named.
    """
    row = first_row(dataset, name)
    columns = column_names(dataset)
    layout: dict[str, Any] = {"kind": "tokenized", "conversational": False, "eos": None}
    layout |= _tokenised_columns(columns)
    if "sides" not in layout:
        found = detect_format(columns, row, wanted=_PAIRS)
        layout |= {"kind": found.kind, "conversational": found.conversational}
        layout |= {"sides": ("chosen", "rejected"), "masks": ()}
        layout["eos"] = _eos_for(processing_class, found)
    margin = "margin" in columns
    step = _RewardRows(
        processing_class=processing_class, margin=margin, max_length=args.max_length, **layout
    )
    made = {"chosen_ids": TOKENS, "rejected_ids": TOKENS}
    with main_process_first():
        return map_rows(
            dataset,
            step,
            made | ({"margin": Value("float32")} if margin else {}),
            name=name,
            num_proc=args.dataset_num_proc,
            kept=() if args.remove_unused_columns else columns,
            lost=f"one side is longer than max_length={args.max_length} tokens",
        )
