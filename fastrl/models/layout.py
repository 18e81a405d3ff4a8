"""From padded rows to what the model is fed, and back; all indices are made on the host.

Notation: row i has `lengths[i]` tokens; token j of it (counted within the row) stands in column
`starts[i] + j` of the (B, T) ids. Its log-probability comes from the hidden state of token j - 1 and lands
in column `starts[i] + j - 1` of the (B, T - 1) result.
"""

from __future__ import annotations

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
        ValueError: ids not 2-D, lists of another length than the batch, a row that is empty, does not fit
            in T columns, or is scored from its first token (nothing precedes it).
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
                f"tokens row {row}: start {start} and length {length} do not fit in {ids.shape[1]} columns"
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
    # A row's last token predicts nothing that is asked for, so it is not forwarded (but a lone one is).
    fed = np.maximum(spans.length - 1, 1)
    base = np.cumsum(fed) - fed
    count = spans.length - spans.scored
    source = _runs(spans.row * columns + spans.start, fed)
    positions = _runs(spans.offset, fed)
    rows = _runs(base + spans.scored - 1, count)
    targets = _runs(spans.row * columns + spans.start + spans.scored, count)
    frame = _runs(spans.row * (columns - 1) + spans.start + spans.scored - 1, count)
    device = tokens.ids.device
    source, positions, rows, targets, frame = _to_device(
        device, source, positions, rows, targets, frame
    )
    flat = tokens.ids.reshape(-1)
    inputs = {
        "input_ids": flat[source][None],
        "position_ids": positions[None],
        # A mask that is 4-D already is passed through by every mask function; ours never reads it.
        "attention_mask": torch.zeros(1, 1, 1, 1, device=device),
        "fastrl_segments": Segments.of_lengths(fed.tolist()),
        "use_cache": False,
    }
    return Batch(inputs, rows, flat[targets], 0), frame


def packed(tokens: Tokens, max_tokens: int | None = None) -> Layout:
    """Rows end to end, without padding.

    Args:
        tokens: the rows.
        max_tokens: start another batch before one would exceed this many tokens; None means one batch.
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
        _pack(tokens, spans.take(slice(first, last)))
        for first, last in zip(cuts, cuts[1:], strict=False)
    ]
    return Layout(tuple(batch for batch, _ in pieces), torch.cat([frame for _, frame in pieces]))


def _padded_positions(spans: _Spans, columns: int, first: int) -> np.ndarray:
    """(B, columns): a row's positions on its tokens, 0 on padding."""
    column = first + np.arange(columns)[None]
    positions = column - spans.start[:, None] + spans.offset[:, None]
    inside = (column >= spans.start[:, None]) & (column < (spans.start + spans.length)[:, None])
    return np.where(inside, positions, 0)


def padded(tokens: Tokens, takes_positions: bool, own_positions_count_pads: bool = True) -> Layout:
    """The rows as they stand, less the columns that no row uses.

    Args:
        tokens: the rows.
        takes_positions: whether the model accepts `position_ids`.
        own_positions_count_pads: whether a model left to itself counts padding as positions.

    Raises:
        ValueError: if positions are asked for that a model without `position_ids` cannot be given.
    """
    spans = _Spans.of(tokens)
    total = tokens.ids.shape[1]
    keep = spans.offset == spans.start
    if not takes_positions and own_positions_count_pads and not keep.all():
        if spans.offset.any():
            raise ValueError(
                "tokens.position_offsets: this model takes no position_ids; give None, or the padding "
                "before each row"
            )
        return _shifted(tokens, spans)
    # Cutting columns on the left moves positions, which is only harmless if they are given.
    first = int(spans.start.min()) if takes_positions else 0
    last = int((spans.start + spans.length).max())
    width = last - first
    column = np.arange(first, last)[None]
    inside = (column >= spans.start[:, None]) & (column < (spans.start + spans.length)[:, None])
    count = spans.length - spans.scored
    place = spans.start + spans.scored - 1
    arrays = _to_device(
        tokens.ids.device,
        _runs(spans.row * width + place - first, count),
        _runs(spans.row * total + place + 1, count),
        _runs(spans.row * (total - 1) + place, count),
        inside.astype(np.int64).ravel(),
        _padded_positions(spans, width, first).ravel(),
    )
    rows, targets, frame, mask, positions = arrays
    inputs = {
        "input_ids": tokens.ids[:, first:last],
        "attention_mask": mask.view(-1, width),
        "use_cache": False,
    }
    if takes_positions:
        inputs["position_ids"] = positions.view(-1, width)
    scored_from = int(place[count > 0].min()) - first if (count > 0).any() else width - 1
    batch = Batch(inputs, rows, tokens.ids.reshape(-1)[targets], scored_from)
    return Layout((batch,), frame)


def _shifted(tokens: Tokens, spans: _Spans) -> Layout:
    """Every row moved to column 0, where a model without `position_ids` counts as it should."""
    width = int(spans.length.max())
    total = tokens.ids.shape[1]
    source = np.minimum(spans.start[:, None] + np.arange(width)[None], total - 1)
    (columns,) = _to_device(tokens.ids.device, source.ravel())
    ids = tokens.ids.gather(1, columns.view(-1, width))
    zeros = [0] * len(tokens.starts)
    moved = padded(Tokens(ids, zeros, tokens.lengths, tokens.scored), takes_positions=False)
    count = spans.length - spans.scored
    frame = _runs(spans.row * (total - 1) + spans.start + spans.scored - 1, count)
    return Layout(moved.batches, *_to_device(tokens.ids.device, frame))
