"""Pairs of answers, each in one row with its prompt -> batches for ORPO and CPO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.data.data_collator import DataCollatorMixin

from fastrl.data.collate import (
    IGNORED,
    padded,
    padded_width,
    scored_from,
    scored_where,
    steps,
    token_array,
)
from fastrl.data.collate_preference import Row, shared_prompts
from fastrl.types import Scored, Spans

SIDES = ("chosen", "rejected")


def _begin(labels: np.ndarray) -> int:
    """How many tokens come before the answer."""
    learned = labels != IGNORED
    return int(learned.argmax()) if learned.any() else len(labels)


@dataclass
class DataCollatorForPairs(DataCollatorMixin):
    """Rows of `chosen_input_ids`, `chosen_labels`, `rejected_input_ids` and `rejected_labels`.

    Returns these and `chosen_attention_mask` and `rejected_attention_mask`, (B, T) int64 of each
    side's own width, padded behind (labels with -100); and `spans` of the rows [chosen …; rejected
    …] stacked at the larger width, (2B, T), each pair's prompt shared.

    Args:
        pad_token_id: id of the padding token.
        scores_prompt: the prompt before the chosen answer is scored too, not the answers alone.
        pad_to_multiple_of: widths are multiples of this.
        return_tensors: only `pt`.
    """

    pad_token_id: int
    scores_prompt: bool = False
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of some pairs."""
        batch: dict[str, Any] = {}
        rows: list[Row] = []
        scored: list[Scored] = []
        widths = []
        for side in SIDES:
            ids = [token_array(example[f"{side}_input_ids"]) for example in examples]
            labels = [token_array(example[f"{side}_labels"]) for example in examples]
            lengths = [len(own) for own in ids]
            width = padded_width(max(lengths), self.pad_to_multiple_of)
            batch[f"{side}_input_ids"] = padded(ids, self.pad_token_id, width)
            batch[f"{side}_attention_mask"] = steps(lengths, width)
            batch[f"{side}_labels"] = padded(labels, IGNORED, width)
            widths.append(width)
            rows += [(own, _begin(of)) for own, of in zip(ids, labels, strict=True)]
            if self.scores_prompt and side == "chosen":
                scored += [scored_from(1, length) for length in lengths]
            else:
                scored += [scored_where(of != IGNORED) for of in labels]
        batch["spans"] = Spans(
            shape=(len(rows), max(widths)),
            rows=list(range(len(rows))),
            starts=[0] * len(rows),
            lengths=[len(ids) for ids, _ in rows],
            scored=scored,
            shared=shared_prompts(rows),
        )
        return batch
