"""Pairs -> batches for a reward model, with the token at which each row is pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.data.data_collator import DataCollatorMixin

from fastrl.data.collate import padded, padded_width, steps, token_array
from fastrl.types import Shared, Spans


def pooled_column(ids: np.ndarray, pad_token_id: int) -> int:
    """Column of the last token that is not padding, 0 if all are: where transformers pools.

    Where the padding token is also the end-of-sequence token, that is the token before the end.
    """
    real = np.flatnonzero(ids != pad_token_id)
    return int(real[-1]) if len(real) else 0


def _common(left: np.ndarray, right: np.ndarray) -> int:
    """How many tokens two rows begin with in common."""
    shorter = min(len(left), len(right))
    differs = np.flatnonzero(left[:shorter] != right[:shorter])
    return int(differs[0]) if len(differs) else shorter


@dataclass
class DataCollatorForPreference(DataCollatorMixin):
    """Rows of `chosen_ids`, `rejected_ids` (and `margin`) -> [chosen …; rejected …], for rewards.

    Returns (2B, T) int64 `input_ids` and `attention_mask`, padded behind, (B,) fp32 `margin` where
    the rows have it, `spans` with each pair's common beginning shared up to where it is pooled, and
    `pooled`: 2B columns, the last token of each row that is not `pad_token_id`.

    Args:
        pad_token_id: id of the padding token.
        pad_to_multiple_of: widths are multiples of this.
        return_tensors: only `pt`.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of some pairs."""
        sides = ("chosen_ids", "rejected_ids")
        rows = [token_array(example[side]) for side in sides for example in examples]
        lengths = [len(row) for row in rows]
        width = padded_width(max(lengths), self.pad_to_multiple_of)
        batch: dict[str, Any] = {
            "input_ids": padded(rows, self.pad_token_id, width),
            "attention_mask": steps(lengths, width),
        }
        if "margin" in examples[0]:
            margins = [example["margin"] for example in examples]
            batch["margin"] = torch.tensor(margins, dtype=torch.float)
        pooled = [pooled_column(row, self.pad_token_id) for row in rows]
        batch["spans"] = Spans(
            shape=(len(rows), width),
            rows=list(range(len(rows))),
            starts=[0] * len(rows),
            lengths=lengths,
            scored=[np.empty(0, dtype=np.int64)] * len(rows),
            shared=self._shared(rows, pooled),
        )
        batch["pooled"] = pooled
        return batch

    @staticmethod
    def _shared(rows: Sequence[np.ndarray], pooled: Sequence[int]) -> tuple[Shared, ...]:
        """What each pair begins with in common, before the tokens that are pooled."""
        pairs = len(rows) // 2
        shared = []
        for pair in range(pairs):
            other = pair + pairs
            length = min(_common(rows[pair], rows[other]), pooled[pair], pooled[other])
            if length > 0:
                shared.append(Shared((pair, other), length))
        return tuple(shared)
