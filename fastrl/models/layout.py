"""From padded rows to what the model is fed, and back; all indices are made on the host.

Notation: row i has `lengths[i]` tokens; token j of it (counted within the row) stands in column
`starts[i] + j` of the (B, T) ids. Its log-probability comes from the hidden state of token j - 1
and lands in column `starts[i] + j - 1` of the (B, T - 1) result.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastrl.models.attention import Segments
from fastrl.types import Tokens


@dataclass(frozen=True)
class Batch:
    """One call of the backbone and the places of its output that are scored."""

    inputs: dict[str, Any]  # keyword arguments of the model or its backbone
    rows: torch.Tensor  # (S,) int64: scored places in the flattened (rows * columns) hidden states
    targets: torch.Tensor  # (S,) int64: the tokens those places predict
    first_column: int  # smallest scored column; the logits left of it are not wanted


@dataclass(frozen=True)
class Layout:
    """All batches of one pass, and where their scores belong."""

    batches: tuple[Batch, ...]
    frame: torch.Tensor  # (sum of S,) int64 places in the flattened (B, T - 1) result


def check(tokens: Tokens) -> None:
    """Refuse spans that do not fit the ids.

    Raises:
        TypeError: ids that are not integer.
        ValueError: ids not 2-D, lists of another length than the batch, a row that is empty, does
            not fit in T columns, or is scored from its first token (nothing precedes it).
    """
    ids = tokens.ids
    if ids.dim() != 2:
        raise ValueError(f"tokens.ids must be (B, T), got shape {tuple(ids.shape)}")
    if ids.is_floating_point():
        raise TypeError(f"tokens.ids must be integer token ids, got {ids.dtype}")
    lists = {"starts": tokens.starts, "lengths": tokens.lengths, "scored": tokens.scored}
    if tokens.position_offsets is not None:
        lists["position_offsets"] = tokens.position_offsets
    for name, values in lists.items():
        if len(values) != ids.shape[0]:
            raise ValueError(f"tokens.{name} has {len(values)} entries for {ids.shape[0]} rows")
    spans = zip(tokens.starts, tokens.lengths, tokens.scored, strict=True)
    for row, (start, length, scored) in enumerate(spans):
        if length < 1 or start < 0 or start + length > ids.shape[1]:
            raise ValueError(
                f"tokens row {row}: start {start} and length {length} do not fit in "
                f"{ids.shape[1]} columns"
            )
        if scored < 1:
            raise ValueError(f"tokens row {row}: scored must be at least 1, got {scored}")


@dataclass(frozen=True)
class _Spans:
    """The lists of `Tokens` as int64 arrays, one entry per row."""

    row: np.ndarray
    start: np.ndarray
    length: np.ndarray
    scored: np.ndarray
    offset: np.ndarray

    @staticmethod
    def of(tokens: Tokens) -> _Spans:
        count = len(tokens.starts)
        start, length, scored = (
            np.asarray(values, dtype=np.int64)
            for values in (tokens.starts, tokens.lengths, tokens.scored)
        )
        offset = np.asarray(tokens.position_offsets or [0] * count, dtype=np.int64)
        return _Spans(np.arange(count), start, length, np.minimum(scored, length), offset)

    def take(self, chosen: slice) -> _Spans:
        fields = (self.row, self.start, self.length, self.scored, self.offset)
        return _Spans(*(values[chosen] for values in fields))


def _runs(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, ... (count[0] of them), first[1], ...: the runs end to end."""
    ends = np.cumsum(count)
    return np.repeat(first - (ends - count), count) + np.arange(ends[-1] if len(ends) else 0)


def _to_device(device: torch.device, *arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
    """The int64 arrays on the device, by one copy that the host does not wait for."""
    joined = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        joined = joined.pin_memory().to(device, non_blocking=True)
    else:
        joined = joined.to(device)
    return joined.split([len(array) for array in arrays])


def _pack(tokens: Tokens, spans: _Spans) -> tuple[Batch, torch.Tensor]:
    columns = tokens.ids.shape[1]
    # A row's last token predicts nothing that is asked for, so it is not forwarded (but a lone
    # one is).
    fed = np.maximum(spans.length - 1, 1)
    base = np.cumsum(fed) - fed
    count = spans.length - spans.scored
    source = _runs(spans.row * columns + spans.start, fed)
    positions = _runs(spans.offset, fed)
    rows = _runs(base + spans.scored - 1, count)
    targets = _runs(spans.row * columns + spans.start + spans.scored, count)
    frame = _runs(spans.row * (columns - 1) + spans.start + spans.scored - 1, count)
    device = tokens.ids.device
    moved = _to_device(device, source, positions, rows, targets, frame)
    flat = tokens.ids.reshape(-1)
    inputs = {
        "input_ids": flat[moved[0]][None],
        "position_ids": moved[1][None],
        # A mask that is 4-D already is passed through by every mask function; ours never reads it.
        "attention_mask": torch.zeros(1, 1, 1, 1, device=device),
        "fastrl_segments": Segments.of_lengths(fed.tolist()),
        "use_cache": False,
    }
    return Batch(inputs, moved[2], flat[moved[3]], 0), moved[4]


def packed(tokens: Tokens, max_tokens: int | None = None) -> Layout:
    """Rows end to end, without padding.

    Args:
        tokens: the rows.
        max_tokens: start another batch before one would exceed this many tokens; None means one
            batch.
    """
    spans = _Spans.of(tokens)
    cuts = [0]
    held = 0
    for row, length in enumerate(tokens.lengths):
        if max_tokens is not None and held and held + length > max_tokens:
            cuts.append(row)
            held = 0
        held += length
    cuts.append(len(tokens.lengths))
    pieces = [
        _pack(tokens, spans.take(slice(first, last))) for first, last in itertools.pairwise(cuts)
    ]
    return Layout(tuple(batch for batch, _ in pieces), torch.cat([frame for _, frame in pieces]))


def padded(tokens: Tokens, takes_positions: bool, counts_pads: bool = True) -> Layout:
    """Every row from column 0 on, padded behind, less the columns that no row uses.

    Padding in front is avoided: queries that may see no key at all are NaN in some models. Only a
    model that counts padding as positions, and takes none from us, gets it when
    `position_offsets` ask for it.

    Args:
        tokens: the rows.
        takes_positions: whether the model accepts `position_ids`.
        counts_pads: whether the model left to itself counts padding in front as positions.

    Raises:
        ValueError: for position offsets the model cannot be given.
    """
    spans = _Spans.of(tokens)
    offset = bool(spans.offset.any())
    if not offset or takes_positions or not counts_pads:
        return _grid(tokens, spans, np.zeros_like(spans.start), offset and takes_positions)
    if (spans.offset != spans.start).any():
        raise ValueError(
            "tokens.position_offsets: this model takes no position_ids; "
            "give None, or each row's start"
        )
    return _grid(tokens, spans, spans.start, False)


def _grid(tokens: Tokens, spans: _Spans, at: np.ndarray, with_positions: bool) -> Layout:
    """A padded batch in which row i begins at column at[i]."""
    total = tokens.ids.shape[1]
    width = int((at + spans.length).max())
    column = np.arange(width)[None]
    inside = (column >= at[:, None]) & (column < (at + spans.length)[:, None])
    source = spans.row[:, None] * total + np.clip(
        column + (spans.start - at)[:, None], 0, total - 1
    )
    positions = np.where(inside, column - at[:, None] + spans.offset[:, None], 0)
    count = spans.length - spans.scored
    first = spans.start + spans.scored
    rows, targets, frame, mask, taken, placed = _to_device(
        tokens.ids.device,
        _runs(spans.row * width + at + spans.scored - 1, count),
        _runs(spans.row * total + first, count),
        _runs(spans.row * (total - 1) + first - 1, count),
        inside.astype(np.int64).ravel(),
        source.ravel(),
        positions.ravel(),
    )
    flat = tokens.ids.reshape(-1)
    inputs = {
        "input_ids": flat[taken].view(-1, width),
        "attention_mask": mask.view(-1, width),
        "use_cache": False,
    }
    if with_positions:
        inputs["position_ids"] = placed.view(-1, width)
    wanted = (at + spans.scored - 1)[count > 0]
    first_column = int(wanted.min()) if len(wanted) else width - 1
    return Layout((Batch(inputs, rows, flat[targets], first_column),), frame)
