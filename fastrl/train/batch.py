"""A batch at the trainer's boundary: a plain dict of tensors, and what the host knows of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from fastrl.types import Scored, Spans, Tokens

IGNORED = -100  # label of a token that is not learnt


class Batch(dict[str, Any]):
    """The dict that `compute_loss` gets, less what is no input of a model.

    `spans` came from the collator; it is None for one that does not describe its batches, and for
    a dict that user code rebuilt.
    """

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        super().__init__(inputs)
        self.spans: Spans | None = self.pop("spans", None)
        self.pooled: list[int] | None = self.pop("pooled", None)


def _row_starts(positions: torch.Tensor) -> np.ndarray:
    """Columns where a sequence begins in the (1, N) position_ids of a packed row."""
    return np.flatnonzero(positions[0].cpu().numpy() == 0)


def _extents(inputs: Mapping[str, Any]) -> tuple[list[int], list[int], list[int]]:
    """(rows, starts, lengths) of the sequences, from the mask or the positions."""
    ids = inputs["input_ids"]
    count, width = ids.shape
    mask = inputs.get("attention_mask")
    positions = inputs.get("position_ids")
    if mask is not None:
        present = mask.bool().cpu().numpy()
        lengths = present.sum(1)
        starts = present.argmax(1)
        column = np.arange(width)
        block = (column >= starts[:, None]) & (column < (starts + lengths)[:, None])
        if (present != block).any():
            row = int((present != block).any(1).argmax())
            raise ValueError(f"attention_mask row {row}: its ones are not one unbroken run")
        rows = np.flatnonzero(lengths)
        return rows.tolist(), starts[rows].tolist(), lengths[rows].tolist()
    if positions is not None and count == 1:
        starts = _row_starts(positions)
        lengths = np.diff(np.append(starts, width))
        return [0] * len(starts), starts.tolist(), lengths.tolist()
    return list(range(count)), [0] * count, [width] * count


def describe(inputs: Mapping[str, Any], wanted: torch.Tensor) -> Spans:
    """Spans of a batch that came without; copies its masks to the host.

    Args:
        inputs: `input_ids` (B, T) with `attention_mask`, or packed with `position_ids`.
        wanted: (B, T) bool, the tokens to score; a sequence's first token never is.

    Raises:
        ValueError: for a mask with holes.
    """
    rows, starts, lengths = _extents(inputs)
    chosen = wanted.cpu().numpy()
    scored: list[Scored] = []
    for row, start, length in zip(rows, starts, lengths, strict=True):
        places = np.flatnonzero(chosen[row, start : start + length])
        scored.append(places[places > 0])
    return Spans(tuple(inputs["input_ids"].shape), rows, starts, lengths, scored)


def _spans(inputs: Mapping[str, Any], wanted: Callable[[], torch.Tensor]) -> Spans:
    spans = inputs.spans if isinstance(inputs, Batch) else None
    if spans is None or spans.shape != tuple(inputs["input_ids"].shape):
        spans = describe(inputs, wanted())
    return spans


def labelled_tokens(inputs: Mapping[str, Any]) -> Tokens:
    """The tokens whose label is not ignored, as the collator described them or as the masks say."""
    labels = inputs["labels"]
    return _spans(inputs, lambda: labels != IGNORED).tokens(inputs["input_ids"], labels)


def masked_tokens(inputs: Mapping[str, Any], mask: str) -> Tokens:
    """The tokens that a mask among the inputs marks."""
    return _spans(inputs, lambda: inputs[mask].bool()).tokens(inputs["input_ids"])
