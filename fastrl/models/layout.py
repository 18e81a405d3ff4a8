"""From the spans of a padded batch to what the model is fed, and back; all indices on the host.

Token j of span i (counted within the span) stands in column `starts[i] + j` of row `rows[i]` of
the (B, T) ids. Its log-probability comes from the hidden state of token j - 1, its place, and lands
in column `starts[i] + j - 1` of the (B, T - 1) result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastrl.models.attention import Segments
from fastrl.models.spans import Places, places, runs
from fastrl.models.stretches import Stretches, stretches
from fastrl.types import Tokens


@dataclass(frozen=True)
class Batch:
    """One call of the backbone and the places of its output that are scored."""

    inputs: dict[str, Any]  # keyword arguments of the model or its backbone
    rows: torch.Tensor  # (K,) int64: scored places in the flattened (rows * columns) hidden states
    targets: torch.Tensor  # (K,) int64: the tokens those places predict
    first_column: int  # smallest scored column; the logits left of it are not wanted
    # (1, columns) or (rows, 1): how long the span is that each token fed belongs to; on the host
    lengths: np.ndarray


@dataclass(frozen=True)
class Layout:
    """All batches of one pass, and where their scores belong."""

    batches: tuple[Batch, ...]
    frame: torch.Tensor  # (sum of K,) int64 places in the flattened (B, T - 1) result
    spans: np.ndarray  # (sum of K,) the span each score belongs to


def _to_device(device: torch.device, *arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
    """The int64 arrays on the device, by one copy that the host does not wait for."""
    joined = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        joined = joined.pin_memory().to(device, non_blocking=True)
    else:
        joined = joined.to(device)
    return joined.split([len(array) for array in arrays])


@dataclass(frozen=True)
class _Chosen:
    """The scored places of some spans, in the order of the spans."""

    span: np.ndarray  # (K,)
    place: np.ndarray  # (K,)

    @staticmethod
    def of(spans: Places, order: np.ndarray) -> _Chosen:
        first = np.cumsum(spans.count) - spans.count
        count = spans.count[order]
        return _Chosen(np.repeat(order, count), spans.place[runs(first[order], count)])

    def targets(self, tokens: Tokens, spans: Places) -> np.ndarray:
        """(K,) places of the predicted tokens in the flattened ids."""
        rows, columns = tokens.ids.shape
        at = spans.row[self.span] * columns + spans.start[self.span] + self.place + 1
        return np.minimum(at, rows * columns - 1)  # a pooled last token predicts nothing

    def frame(self, tokens: Tokens, spans: Places) -> np.ndarray:
        """(K,) places in the flattened (B, T - 1) result."""
        columns = tokens.ids.shape[1] - 1
        return spans.row[self.span] * columns + spans.start[self.span] + self.place


def _wanted(tokens: Tokens) -> torch.Tensor:
    """(B * T,) int64: the tokens that are scored."""
    return (tokens.ids if tokens.targets is None else tokens.targets).reshape(-1)


def _pack(
    tokens: Tokens, spans: Places, laid: Stretches, trim: bool
) -> tuple[Batch, torch.Tensor, np.ndarray]:
    columns = tokens.ids.shape[1]
    tails = np.setdiff1d(np.arange(len(laid.span)), laid.after)  # no beginning shared by others
    owners = laid.span[tails]
    base = np.zeros_like(spans.row)  # where a span's first token is, or would be, in the row
    base[owners] = (laid.start - laid.first)[tails]
    wanted = None
    if trim:
        unread = np.clip(spans.first[laid.span] - laid.first, 0, laid.count)
        wanted = tuple((laid.count - unread).tolist())
    chosen = _Chosen.of(spans, owners)
    device = tokens.ids.device
    source, positions, rows, targets, frame = _to_device(
        device,
        runs(spans.row[laid.span] * columns + spans.start[laid.span] + laid.first, laid.count),
        runs(spans.offset[laid.span] + laid.first, laid.count),
        base[chosen.span] + chosen.place,
        chosen.targets(tokens, spans),
        chosen.frame(tokens, spans),
    )
    flat = tokens.ids.reshape(-1)
    inputs = {
        "input_ids": flat[source][None],
        "position_ids": positions[None],
        # A mask that is 4-D already is passed through by every mask function; ours never reads it.
        "attention_mask": torch.zeros(1, 1, 1, 1, device=device),
        "fastrl_segments": Segments(
            tuple(laid.count.tolist()), tuple(laid.after.tolist()), wanted=wanted
        ),
        "use_cache": False,
    }
    lengths = np.repeat(spans.length[laid.span], laid.count)[None]
    return Batch(inputs, rows, _wanted(tokens)[targets], 0, lengths), frame, chosen.span


def packed(
    tokens: Tokens,
    max_tokens: int | None = None,
    share: bool = False,
    whole: bool = False,
    trim: bool = False,
    spans: Places | None = None,
) -> Layout:
    """Spans end to end, without padding. What no score depends on is not fed.

    Args:
        tokens: the spans.
        max_tokens: start another batch before one would exceed this many tokens; None means one
            batch.
        share: feed what `tokens.shared` names once.
        whole: feed every token, even those no score depends on.
        trim: tell the last layer before which token of each span nothing is scored.
        spans: other places than those `tokens.scored` names.
    """
    spans = places(tokens) if spans is None else spans
    fed = spans.length if whole else spans.needed
    if not fed.any():
        fed[0] = 1  # the result stays connected to the parameters
    laid = stretches(spans, fed, tokens.shared if share else (), max_tokens)
    batches, frames, owners = zip(*(_pack(tokens, spans, row, trim) for row in laid), strict=True)
    return Layout(batches, torch.cat(frames), np.concatenate(owners))


def padded(
    tokens: Tokens,
    takes_positions: bool,
    counts_pads: bool = True,
    spans: Places | None = None,
) -> Layout:
    """Every span in a row of its own from column 0 on, padded behind.

    Padding in front is avoided: queries that may see no key at all are NaN in some models. Only a
    model that counts padding as positions, and takes none from us, gets it when
    `position_offsets` ask for it.

    Args:
        tokens: the spans.
        takes_positions: whether the model accepts `position_ids`.
        counts_pads: whether the model left to itself counts padding in front as positions.
        spans: other places than those `tokens.scored` names.

    Raises:
        ValueError: for position offsets the model cannot be given.
    """
    spans = places(tokens) if spans is None else spans
    offset = bool(spans.offset.any())
    if not offset or takes_positions or not counts_pads:
        return _grid(tokens, spans, np.zeros_like(spans.start), offset and takes_positions)
    if (spans.offset != spans.start).any():
        raise ValueError(
            "tokens.position_offsets: this model takes no position_ids; "
            "give None, or each row's start"
        )
    return _grid(tokens, spans, spans.start, False)


def _grid(tokens: Tokens, spans: Places, at: np.ndarray, with_positions: bool) -> Layout:
    """A padded batch in which span i begins at column at[i]."""
    total = tokens.ids.shape[1]
    width = int((at + spans.length).max())
    column = np.arange(width)[None]
    inside = (column >= at[:, None]) & (column < (at + spans.length)[:, None])
    source = spans.row[:, None] * total + np.clip(
        column + (spans.start - at)[:, None], 0, total - 1
    )
    positions = np.where(inside, column - at[:, None] + spans.offset[:, None], 0)
    chosen = _Chosen.of(spans, np.arange(len(spans.row)))
    wanted = at[chosen.span] + chosen.place
    rows, targets, frame, mask, taken, placed = _to_device(
        tokens.ids.device,
        chosen.span * width + wanted,
        chosen.targets(tokens, spans),
        chosen.frame(tokens, spans),
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
    first_column = int(wanted.min()) if len(wanted) else width - 1
    lengths = spans.length[:, None]
    batch = Batch(inputs, rows, _wanted(tokens)[targets], first_column, lengths)
    return Layout((batch,), frame, chosen.span)
