"""The lists of `Tokens` as arrays on the host: checked, and with every scored place named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastrl.types import Scored, Shared, Tokens


@dataclass(frozen=True)
class Places:
    """S spans and the K places in them whose hidden states are scored, span by span.

    The place of token j is that of the token before it: its hidden state predicts token j.
    """

    row: np.ndarray  # (S,) row of the ids
    start: np.ndarray  # (S,) column of the first token
    length: np.ndarray  # (S,) tokens
    offset: np.ndarray  # (S,) position id of the first token
    count: np.ndarray  # (S,) scored places
    place: np.ndarray  # (K,) index of the place within its span, rising in each span

    @property
    def needed(self) -> np.ndarray:
        """(S,) how many leading tokens the span's scores depend on; 0 without scores."""
        found = np.zeros_like(self.count)
        some = self.count > 0
        found[some] = self.place[np.cumsum(self.count)[some] - 1] + 1
        return found

    @property
    def first(self) -> np.ndarray:
        """(S,) the first scored place; the span's length without scores."""
        found = self.length.copy()
        some = self.count > 0
        found[some] = self.place[(np.cumsum(self.count) - self.count)[some]]
        return found


def runs(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, ... (count[0] of them), first[1], ...: the runs end to end."""
    ends = np.cumsum(count)
    return np.repeat(first - (ends - count), count) + np.arange(ends[-1] if len(ends) else 0)


def _integers(values: Sequence[int]) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)


def _tokens_of(scored: Scored, length: int) -> np.ndarray:
    if isinstance(scored, np.ndarray):
        return scored.astype(np.int64)
    return np.arange(min(scored, length), length)


def _scored(scored: Sequence[Scored], length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S,) how many tokens are scored, and (K,) their indices."""
    if any(isinstance(which, np.ndarray) for which in scored):
        lists = [_tokens_of(which, n) for which, n in zip(scored, length, strict=True)]
        return _integers([len(which) for which in lists]), np.concatenate(lists)
    first = np.minimum(np.asarray(scored, dtype=np.int64), length)
    return length - first, runs(first, length - first)


def places(tokens: Tokens) -> Places:
    """The spans of `tokens`, which `check` has passed."""
    length = _integers(tokens.lengths)
    rows = range(len(length)) if tokens.rows is None else tokens.rows
    offset = tokens.position_offsets
    count, scored = _scored(tokens.scored, length)
    return Places(
        _integers(rows),
        _integers(tokens.starts),
        length,
        np.zeros_like(length) if offset is None else _integers(offset),
        count,
        scored - 1,
    )


def pooled_places(tokens: Tokens, pooled: Sequence[int]) -> Places:
    """The spans with one place each: the token at `pooled[i]`, counted within the span.

    Raises:
        ValueError: for a list of another length than the spans, or a place outside its span.
    """
    if len(pooled) != len(tokens.lengths):
        raise ValueError(f"pooled has {len(pooled)} entries for {len(tokens.lengths)} spans")
    for span, (place, length) in enumerate(zip(pooled, tokens.lengths, strict=True)):
        if not 0 <= place < length:
            raise ValueError(f"pooled[{span}] is {place}, but span {span} has {length} tokens")
    ones = np.ones(len(pooled), dtype=np.int64)
    plain = places(Tokens(**{**tokens.__dict__, "scored": list(tokens.lengths)}))
    fields = (plain.row, plain.start, plain.length, plain.offset)
    return Places(*fields, ones, _integers(pooled))


def check(tokens: Tokens) -> None:
    """Refuse spans that do not fit the ids.

    Raises:
        TypeError: ids that are not integer.
        ValueError: ids not 2-D; targets of another shape; lists of unequal length; a span that is
            empty, does not fit in its row or lies on another; scores of a first token (nothing
            precedes it), of tokens the span lacks, or out of order; or spans said to share what
            they do not.
    """
    ids = tokens.ids
    if ids.dim() != 2:
        raise ValueError(f"tokens.ids must be (B, T), got shape {tuple(ids.shape)}")
    if ids.is_floating_point():
        raise TypeError(f"tokens.ids must be integer token ids, got {ids.dtype}")
    if tokens.targets is not None and tokens.targets.shape != ids.shape:
        raise ValueError(
            f"tokens.targets must have the shape of the ids, {tuple(ids.shape)}, got "
            f"{tuple(tokens.targets.shape)}"
        )
    spans = ids.shape[0] if tokens.rows is None else len(tokens.rows)
    lists = {"starts": tokens.starts, "lengths": tokens.lengths, "scored": tokens.scored}
    if tokens.position_offsets is not None:
        lists["position_offsets"] = tokens.position_offsets
    for name, values in lists.items():
        if len(values) != spans:
            kind = "rows" if tokens.rows is None else "entries of tokens.rows"
            raise ValueError(f"tokens.{name} has {len(values)} entries for {spans} {kind}")
    _check_places(tokens)
    for span, (scored, length) in enumerate(zip(tokens.scored, tokens.lengths, strict=True)):
        _check_scored(span, scored, length)
    _check_shared(tokens)


def _check_places(tokens: Tokens) -> None:
    rows, columns = tokens.ids.shape
    length, start = _integers(tokens.lengths), _integers(tokens.starts)
    row = _integers(range(rows) if tokens.rows is None else tokens.rows)
    misfits = np.flatnonzero((length < 1) | (start < 0) | (start + length > columns))
    if len(misfits):
        span = misfits[0]
        raise ValueError(
            f"tokens span {span}: start {start[span]} and length {length[span]} do not fit in "
            f"{columns} columns"
        )
    strangers = np.flatnonzero((row < 0) | (row >= rows))
    if len(strangers):
        span = strangers[0]
        raise ValueError(f"tokens span {span}: row {row[span]} is not one of {rows} rows")
    order = np.lexsort((start, row))
    begin = (row * columns + start)[order]
    clashes = np.flatnonzero(begin[1:] < (begin + length[order])[:-1])
    if len(clashes):
        one, other = sorted((order[clashes[0]], order[clashes[0] + 1]))
        raise ValueError(f"tokens spans {one} and {other} overlap in row {row[one]}")


def _check_scored(span: int, scored: Scored, length: int) -> None:
    if not isinstance(scored, np.ndarray):
        if scored < 1:
            raise ValueError(f"tokens span {span}: scored must be at least 1, got {scored}")
        return
    if scored.ndim != 1 or (scored.size and scored.dtype.kind not in "iu"):
        raise ValueError(
            f"tokens span {span}: scored must be a list of integer indices, got "
            f"{scored.dtype} of shape {scored.shape}"
        )
    if scored.size and not (
        scored[0] >= 1 and scored[-1] < length and (np.diff(scored.astype(np.int64)) > 0).all()
    ):
        raise ValueError(
            f"tokens span {span}: scored must rise within 1 ... {length - 1}, got {scored.tolist()}"
        )


def _check_shared(tokens: Tokens) -> None:
    seen: set[int] = set()
    for group in tokens.shared:
        for span in group.spans:
            if not 0 <= span < len(tokens.lengths):
                raise ValueError(f"tokens.shared names span {span} of {len(tokens.lengths)} spans")
            if span in seen:
                raise ValueError(f"tokens.shared names span {span} more than once")
            seen.add(span)
            if not 1 <= group.length <= tokens.lengths[span]:
                raise ValueError(
                    f"tokens.shared: span {span} has {tokens.lengths[span]} tokens, but is said to "
                    f"share {group.length}"
                )
        _check_equal(tokens, group)


def _check_equal(tokens: Tokens, group: Shared) -> None:
    """That the spans of a group begin alike. Ids on a device are not waited for."""
    offsets = tokens.position_offsets
    if offsets is not None and len({offsets[span] for span in group.spans}) > 1:
        raise ValueError(
            f"tokens.position_offsets differ between spans {list(group.spans)}, which share tokens"
        )
    if tokens.ids.device.type != "cpu":
        return
    first = None
    for span in group.spans:
        row = span if tokens.rows is None else tokens.rows[span]
        start = tokens.starts[span]
        here = tokens.ids[row, start : start + group.length]
        first = here if first is None else first
        if not torch.equal(here, first):
            raise ValueError(
                f"tokens.shared: spans {group.spans[0]} and {span} do not begin with the same "
                f"{group.length} tokens"
            )
