"""What a packed row is made of: whole spans, or a shared beginning once and what follows it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fastrl.models.spans import Places
from fastrl.types import Shared


@dataclass(frozen=True)
class Stretches:
    """R runs of tokens laid end to end."""

    span: np.ndarray  # (R,) the span each is taken from
    first: np.ndarray  # (R,) index of its first token within the span
    count: np.ndarray  # (R,) tokens, at least 1
    after: np.ndarray  # (R,) the stretch whose keys come before its own, or -1

    @property
    def start(self) -> np.ndarray:
        """(R,) where each begins in the packed row."""
        return np.cumsum(self.count) - self.count


@dataclass(frozen=True)
class _Common:
    """Per span: the first span of its group (itself without one), and the tokens fed once."""

    leader: np.ndarray  # (S,)
    count: np.ndarray  # (S,) 0: nothing is shared

    @staticmethod
    def of(spans: Places, fed: np.ndarray, shared: tuple[Shared, ...]) -> _Common:
        """Sharing ends before a place that several spans score: each has a state of its own there.

        Where answers are scored from their first token, the last common token is therefore fed
        once per span: its state predicts that token. What the first span alone scores of the
        common tokens is scored where they are fed once, which is right before its own.
        """
        leader = np.arange(len(fed))
        count = np.zeros_like(fed)
        first = spans.first
        for group in shared:
            members = np.asarray([span for span in group.spans if fed[span]], dtype=np.int64)
            if len(members) > 1:
                members.sort()
                leader[members] = members[0]
                last = min(first[members[1:]].min(), fed[members].min() - 1)
                count[members] = min(group.length, last)
        return _Common(leader, count)


def _pieces(fed: np.ndarray, common: _Common, max_tokens: int | None) -> Iterator[list[int]]:
    """The spans, groups together, in runs that feed at most `max_tokens` tokens, or one span."""
    order = np.argsort(common.leader, kind="stable")
    piece: list[int] = []
    held = 0
    for span in order[fed[order] > 0].tolist():
        joins = bool(piece) and common.leader[piece[-1]] == common.leader[span]
        cost = fed[span] - (common.count[span] if joins else 0)
        if max_tokens is not None and piece and held + cost > max_tokens:
            yield piece
            piece, held, cost = [], 0, fed[span]
        piece.append(span)
        held += cost
    yield piece


def _laid(piece: list[int], fed: np.ndarray, common: _Common) -> Stretches:
    rows: list[tuple[int, int, int, int]] = []
    for _, group in itertools.groupby(piece, key=lambda span: common.leader[span]):
        members = list(group)
        shared = int(common.count[members[0]]) if len(members) > 1 else 0
        after = -1
        if shared:
            after = len(rows)
            rows.append((members[0], 0, shared, -1))
        rows += [(span, shared, int(fed[span]) - shared, after) for span in members]
    return Stretches(*np.asarray(rows, dtype=np.int64).T)


def stretches(
    spans: Places, fed: np.ndarray, shared: tuple[Shared, ...], max_tokens: int | None
) -> Iterator[Stretches]:
    """The packed rows that hold the spans.

    Args:
        spans: S spans.
        fed: (S,) how many leading tokens of each are to be fed, beyond its last scored place; not
            all 0.
        shared: which of them begin alike; () to feed each as it is.
        max_tokens: start another row before one would exceed this many tokens; None: one row.
    """
    common = _Common.of(spans, fed, shared)
    for piece in _pieces(fed, common, max_tokens):
        yield _laid(piece, fed, common)
