"""Pairs and marked answers -> batches for DPO and KTO; each prompt is named as shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.data.data_collator import DataCollatorMixin

from fastrl.data.collate import padded, padded_width, scored_from, steps, token_array
from fastrl.types import Shared, Spans

Row = tuple[np.ndarray, int]  # tokens, and how many of them come before the completion


def _cut(prompt: np.ndarray, answer: np.ndarray, window: slice) -> Row:
    """Prompt and answer as one row of at most the window's length."""
    whole = np.concatenate((prompt, answer))
    inside = np.concatenate((np.zeros(len(prompt), bool), np.ones(len(answer), bool)))[window]
    return whole[window], len(inside) - int(inside.sum())


def _tensors(rows: Sequence[Row], pad_token_id: int, multiple: int | None) -> dict[str, Any]:
    """`input_ids`, `attention_mask` and `completion_mask`, (B, T) int64 each."""
    lengths = [len(ids) for ids, _ in rows]
    width = padded_width(max(lengths), multiple)
    return {
        "input_ids": padded([ids for ids, _ in rows], pad_token_id, width),
        "attention_mask": steps(lengths, width),
        "completion_mask": steps(lengths, width, [begin for _, begin in rows]),
    }


def shared_prompts(rows: Sequence[Row]) -> tuple[Shared, ...]:
    """The prompts with which row i and row i + B/2 both begin, up to either's completion."""
    pairs = len(rows) // 2
    shared = []
    for pair in range(pairs):
        (left, left_begin), (right, right_begin) = rows[pair], rows[pair + pairs]
        length = min(left_begin, right_begin, len(left) - 1, len(right) - 1)
        if length > 0 and np.array_equal(left[:length], right[:length]):
            shared.append(Shared((pair, pair + pairs), length))
    return tuple(shared)


def _spans(rows: Sequence[Row], width: int, shared: tuple[Shared, ...]) -> Spans:
    """One span a row, its completion scored."""
    return Spans(
        shape=(len(rows), width),
        rows=list(range(len(rows))),
        starts=[0] * len(rows),
        lengths=[len(ids) for ids, _ in rows],
        scored=[scored_from(begin, len(ids)) for ids, begin in rows],
        shared=shared,
    )


@dataclass
class DataCollatorForPreference(DataCollatorMixin):
    """Rows of `prompt_ids`, `chosen_ids` and `rejected_ids` -> [chosen …; rejected …], for DPO.

    Returns (2B, T) int64 `input_ids`, `attention_mask` and `completion_mask`, padded behind, (B,)
    `ref_chosen_logps` and `ref_rejected_logps` where the rows have them, and `spans` with each
    pair's prompt shared.

    Args:
        pad_token_id: id of the padding token.
        max_length: longer rows are cut to it.
        truncation_mode: which part of a row stays, `keep_start` or `keep_end`.
        pad_to_multiple_of: widths are multiples of this.
        return_tensors: only `pt`.
    """

    pad_token_id: int
    max_length: int | None = None
    truncation_mode: str = "keep_start"
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def _window(self) -> slice:
        if self.max_length is None:
            return slice(None)
        if self.truncation_mode not in ("keep_start", "keep_end"):
            raise ValueError(
                f"truncation_mode must be keep_start or keep_end, not {self.truncation_mode!r}"
            )
        keep_end = self.truncation_mode == "keep_end"
        return slice(-self.max_length, None) if keep_end else slice(self.max_length)

    def torch_call(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of some pairs."""
        window = self._window()
        prompts = [token_array(example["prompt_ids"]) for example in examples]
        rows = [
            _cut(prompt, token_array(example[side]), window)
            for side in ("chosen_ids", "rejected_ids")
            for prompt, example in zip(prompts, examples, strict=True)
        ]
        batch = _tensors(rows, self.pad_token_id, self.pad_to_multiple_of)
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        batch["spans"] = _spans(rows, batch["input_ids"].shape[1], shared_prompts(rows))
        return batch


@dataclass
class DataCollatorForUnpairedPreference(DataCollatorMixin):
    """Rows of `prompt_ids`, `completion_ids`, `label` (and `KL_completion_ids`), for KTO.

    Returns (B, T) int64 `input_ids`, `attention_mask` and `completion_mask`; with KL completions
    also `KL_input_ids`, `KL_attention_mask` and `KL_completion_mask` of a width of their own;
    (B,) `ref_logps` and `ref_KL_logps` where the rows have them; (B,) bool `label`. `spans` is of
    the rows [policy …; KL …] stacked at the larger width, (2B, T), the prompt of row i shared by
    rows i and B + i; without KL completions of the (B, T) rows alone.

    Args:
        pad_token_id: id of the padding token.
        max_length: longer rows are cut to it, at their end.
        pad_to_multiple_of: widths are multiples of this.
        return_tensors: only `pt`.
    """

    pad_token_id: int
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of some answers."""
        prompts = [token_array(example["prompt_ids"]) for example in examples]
        batch: dict[str, Any] = {}
        rows: list[Row] = []
        widths = []
        for prefix in ("", "KL_"):
            if f"{prefix}completion_ids" not in examples[0]:
                continue
            own = [
                _cut(prompt, token_array(e[f"{prefix}completion_ids"]), slice(self.max_length))
                for prompt, e in zip(prompts, examples, strict=True)
            ]
            tensors = _tensors(own, self.pad_token_id, self.pad_to_multiple_of)
            batch |= {prefix + name: tensor for name, tensor in tensors.items()}
            widths.append(tensors["input_ids"].shape[1])
            rows += own
        for name in ("ref_logps", "ref_KL_logps"):
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        batch["label"] = torch.tensor([bool(example["label"]) for example in examples])
        batch["spans"] = _spans(rows, max(widths), shared_prompts(rows) if len(widths) == 2 else ())
        return batch
