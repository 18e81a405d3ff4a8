"""Rows of tokens -> a batch of tensors for SFT, with where each row lies kept on the host.

All collators return TRL's keys and padding, and `spans`: a `fastrl.types.Spans`, from which a
trainer knows lengths and scored tokens without asking the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from transformers.data.data_collator import DataCollatorMixin

from fastrl.types import Scored, Spans

IGNORED = -100  # the label of a token that is not learned
_NOTHING = np.empty(0, dtype=np.int64)


def token_array(values: Any) -> np.ndarray:
    """(T,) int64 of a list, array or tensor of token ids."""
    if isinstance(values, list):
        return np.fromiter(values, np.int64, len(values))
    return np.asarray(values, dtype=np.int64)


def padded_width(longest: int, multiple: int | None) -> int:
    """`longest`, rounded up to a multiple if there is one."""
    return longest if multiple is None else -(-longest // multiple) * multiple


def padded(rows: Sequence[np.ndarray], value: int, width: int) -> torch.Tensor:
    """(B, width) int64: the rows, each followed by `value`."""
    out = np.full((len(rows), width), value, dtype=np.int64)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(out)


def steps(rows: Sequence[int], width: int, low: Sequence[int] | None = None) -> torch.Tensor:
    """(B, width) int64: 1 from column low[b] (0 without `low`) up to column rows[b], else 0."""
    column = np.arange(width)
    inside = column < np.asarray(rows)[:, None]
    if low is not None:
        inside &= column >= np.asarray(low)[:, None]
    return torch.from_numpy(inside.astype(np.int64))


def scored_from(first: int, length: int) -> Scored:
    """All tokens of a span from `first` on that something precedes."""
    return max(first, 1) if max(first, 1) < length else _NOTHING


def scored_where(wanted: np.ndarray) -> Scored:
    """The tokens of a span that are wanted, (T,) bool, without the first: nothing precedes it."""
    places = np.flatnonzero(wanted[1:]) + 1
    if len(places) and len(places) == len(wanted) - places[0]:
        return int(places[0])
    return places


def _check_aligned(ids: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> None:
    for row, (own, other) in enumerate(zip(ids, labels, strict=True)):
        if len(own) != len(other):
            raise ValueError(
                f"row {row} of the batch has {len(own)} input_ids and {len(other)} labels; there "
                f"must be one label for each token, {IGNORED} where it is not learned"
            )


@dataclass
class DataCollatorForLanguageModeling(DataCollatorMixin):
    """Pads rows of `input_ids` (and `labels`; without them every token is learned), or flattens.

    Returns (B, T) int64 `input_ids`, `labels` (-100 on padding) and `attention_mask`. Padding-free:
    all rows in one, (1, N), with `position_ids` that begin at 0 for each sequence,
    `cu_seq_lens_q/k` (S + 1,) int32, `max_length_q/k` and `seq_idx` (1, N) int32 in place of the
    mask, and the first label of each sequence ignored. `seq_lengths` of a row names the sequences
    packed in it.

    Args:
        pad_token_id: id of the padding token.
        padding_free: flatten instead of pad.
        return_position_ids: give `position_ids` beside the attention mask.
        pad_to_multiple_of: widths are multiples of this.
        return_tensors: only `pt`.
    """

    pad_token_id: int
    padding_free: bool = False
    return_position_ids: bool = False
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of some rows."""
        ids = [token_array(example["input_ids"]) for example in examples]
        labels = ids
        if any("labels" in example for example in examples):
            labels = [
                token_array(e["labels"] if "labels" in e else e["input_ids"]) for e in examples
            ]
            _check_aligned(ids, labels)
        if "seq_lengths" in examples[0]:
            packed = [[int(length) for length in example["seq_lengths"]] for example in examples]
        else:
            packed = [[len(row)] for row in ids]
        if self.padding_free:
            return self._flat(ids, labels, [length for row in packed for length in row if length])
        return self._padded(ids, labels, packed)

    def _padded(
        self, ids: list[np.ndarray], labels: list[np.ndarray], packed: list[list[int]]
    ) -> dict[str, Any]:
        lengths = [len(row) for row in ids]
        width = padded_width(max(lengths), self.pad_to_multiple_of)
        batch: dict[str, Any] = {
            "input_ids": padded(ids, self.pad_token_id, width),
            "labels": padded(labels, IGNORED, width),
        }
        if self.return_position_ids:
            positions = [np.concatenate([np.arange(n) for n in row]) for row in packed]
            batch["position_ids"] = padded(positions, 0, width)
        batch["attention_mask"] = steps(lengths, width)
        batch["spans"] = Spans(
            shape=(len(ids), width),
            rows=list(range(len(ids))),
            starts=[0] * len(ids),
            lengths=lengths,
            scored=[scored_where(row != IGNORED) for row in labels],
        )
        return batch

    def _flat(
        self, ids: list[np.ndarray], labels: list[np.ndarray], lengths: list[int]
    ) -> dict[str, Any]:
        total = sum(len(row) for row in ids)
        width = padded_width(total, self.pad_to_multiple_of)
        ends = [*accumulate(lengths, initial=0)]
        if ends[-1] != total:
            raise ValueError(f"seq_lengths sum to {ends[-1]}, but the rows hold {total} input_ids")
        label_row = np.full(width, IGNORED, dtype=np.int64)
        label_row[:total] = np.concatenate(labels)
        label_row[ends[:-1]] = IGNORED
        # As in TRL every padding token is at position 0 and so a sequence of its own.
        borders = np.array([*ends, *range(total + 1, width + 1)], dtype=np.int32)
        sizes = np.diff(borders)
        column = np.arange(width)
        positions = column - np.repeat(borders[:-1], sizes)
        sequence = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        bounds, longest = torch.from_numpy(borders), int(sizes.max())
        wanted = label_row != IGNORED
        spans = Spans(
            shape=(1, width),
            rows=[0] * len(lengths),
            starts=ends[:-1],
            lengths=lengths,
            scored=[
                scored_where(wanted[start : start + length])
                for start, length in zip(ends[:-1], lengths, strict=True)
            ],
        )
        return {
            "input_ids": padded([np.concatenate(ids)], self.pad_token_id, width),
            "labels": torch.from_numpy(label_row[None]),
            "position_ids": torch.from_numpy(positions[None].astype(np.int64)),
            "cu_seq_lens_q": bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": longest,
            "max_length_k": longest,
            "seq_idx": torch.from_numpy(sequence[None]),
            "spans": spans,
        }
