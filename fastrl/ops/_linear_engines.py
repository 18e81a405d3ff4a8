"""Log-probabilities from hidden states and a head, tile by tile: sweeps forward and back.

Engines, by what a call needs and what memory allows (GEMMs of N x D x V for forward and backward):
    keep       3  the (N, V) logits stay until the backward, which makes their gradient tile by tile
    recompute  4  nothing of size V x N stays; the backward makes the logits again
    frozen     2  the head needs no gradient: d logp / d hidden = (W_y - p W) is made in the forward
                  (an entropy with a gradient adds the 2 GEMMs of recompute)
    forward    1  no gradients
and `sweep_nll` (3), which makes all gradients in the forward, where token weights are known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fastrl.ops._linear_tiles import Scores

_TILE_ELEMENTS = 1 << 23  # larger tiles leave the caches, smaller ones make slower products
_LEAST_COLUMNS = 1024
_ALIGNED = 64  # columns: tiles begin at a cache line of the weight and the logits
_CHUNK_BYTES = {"cpu": 1 << 27, "cuda": 1 << 29}  # a buffer of whole rows
_LEAST_ROWS = 128


@dataclass(frozen=True)
class Head:
    """z = softcap * tanh((h W^T + b) * scale / softcap) / temperature; without softcap no tanh."""

    weight: torch.Tensor  # (V, D)
    bias: torch.Tensor | None  # (V,)
    temperature: float
    softcap: float | None
    scale: float

    @property
    def vocab(self) -> int:
        return self.weight.shape[0]

    @property
    def tile_temperature(self) -> float:
        """What a tile of `project` is divided by to give z."""
        return self.temperature / self.scale if self.softcap is None else self.temperature

    def project(self, hidden: torch.Tensor, columns: slice, out: torch.Tensor) -> torch.Tensor:
        """Logits (rows, columns) into `out`: capped, but not yet divided by a temperature."""
        weight = self.weight[columns].t()
        if self.bias is None:
            torch.mm(hidden, weight, out=out)
        else:
            torch.addmm(self.bias[columns], hidden, weight, out=out)
        if self.softcap is not None:
            out.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap)
        return out

    def through_cap(self, gradient: torch.Tensor, tile: torch.Tensor) -> torch.Tensor:
        """d (h W^T + b) from d tile, in place: d tanh = 1 - tanh^2."""
        if self.softcap is None:
            return gradient
        slope = tile.div(self.softcap).square_().neg_().add_(1.0).mul_(self.scale)
        return gradient.mul_(slope)


@dataclass(frozen=True)
class Tiling:
    """How (N, V) is cut."""

    rows: int
    columns: int

    def row_slices(self, n: int) -> Iterator[slice]:
        for start in range(0, max(n, 1), self.rows):
            yield slice(start, min(start + self.rows, n))

    def column_slices(self, vocab: int) -> Iterator[slice]:
        for start in range(0, vocab, self.columns):
            yield slice(start, min(start + self.columns, vocab))


def whole_rows(hidden: torch.Tensor, vocab: int) -> Tiling:
    """Chunks of rows that fit the chunk buffer of the device."""
    chunk = _CHUNK_BYTES.get(hidden.device.type, 1 << 28)
    rows = max(chunk // (vocab * hidden.element_size()), _LEAST_ROWS)
    return Tiling(min(rows, max(len(hidden), 1)), vocab)


def tiling(hidden: torch.Tensor, vocab: int, backend: Any) -> Tiling:
    """Columns for all rows where the backend can: then the head's gradient needs no summing up."""
    if backend.whole_rows:
        return whole_rows(hidden, vocab)
    n = max(len(hidden), 1)
    most = max(_TILE_ELEMENTS // n, _LEAST_COLUMNS)
    even = -(-vocab // -(-vocab // most))
    return Tiling(n, min(-(-even // _ALIGNED) * _ALIGNED, vocab))


def sweep(
    head: Head,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    backend: Any,
    statistics: bool = False,
    keep: torch.Tensor | None = None,
) -> Scores:
    """Scores of all rows; the logits go to `keep` (N, V) if given, else through one buffer."""
    cut = tiling(hidden, head.vocab, backend)
    sums = backend.start(len(hidden), statistics, hidden.device)
    buffer = backend.memory((cut.rows * cut.columns if keep is None else 0,), hidden)
    for rows in cut.row_slices(len(hidden)):
        for columns in cut.column_slices(head.vocab):
            tile = place(buffer, rows, columns) if keep is None else keep[rows, columns]
            head.project(hidden[rows], columns, tile)
            backend.fold(sums, rows, tile, targets[rows], columns.start, head.tile_temperature)
    return backend.finish(sums, head.vocab, head.tile_temperature)


def place(buffer: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
    """The head of a flat buffer as a dense (rows, columns) matrix."""
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    return buffer[: shape[0] * shape[1]].view(shape)


class _Products:
    """A gradient that is a sum of matrix products, summed in float32 or wider.

    Args:
        like: what it is the gradient of, (rows, D).
        pieces: how many products each element sums; a single one needs no wider memory.
        backend: whose memory it is.
    """

    def __init__(self, like: torch.Tensor, pieces: int, backend: Any) -> None:
        narrow = like.dtype in (torch.bfloat16, torch.float16)
        if narrow and pieces > 1:
            self._sum = torch.empty(like.shape, dtype=torch.float32, device=like.device)
        else:
            self._sum = backend.memory(tuple(like.shape), like)
        self._result_dtype = like.dtype

    def add(self, place: slice, first: bool, a: torch.Tensor, b: torch.Tensor) -> None:
        """Add a @ b to the rows in `place`; the first product of a place overwrites it."""
        into = self._sum[place]
        if first and into.dtype == a.dtype:
            torch.mm(a, b, out=into)
        elif into.dtype == a.dtype:
            into.addmm_(a, b)
        elif a.device.type == "cuda":
            if first:
                into.zero_()
            torch.addmm(into, a, b, out_dtype=into.dtype, out=into)
        else:
            into.addmm_(a.to(into.dtype), b.to(into.dtype), beta=0.0 if first else 1.0)

    def result(self) -> torch.Tensor:
        return self._sum.to(self._result_dtype)


@dataclass(frozen=True)
class Wanted:
    """Which gradients a backward is asked for."""

    hidden: bool
    weight: bool
    bias: bool


Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


class Backward:
    """Takes gradients of logits tile by tile, in any cut, and gives those of the inputs."""

    def __init__(
        self, head: Head, hidden: torch.Tensor, wanted: Wanted, cut: Tiling, backend: Any
    ) -> None:
        self._head, self._hidden, self._wanted = head, hidden, wanted
        column_pieces = -(-head.vocab // cut.columns)
        row_pieces = -(-len(hidden) // cut.rows)
        self._d_hidden = self._d_weight = self._d_bias = None
        if wanted.hidden:
            self._d_hidden = _Products(hidden, column_pieces, backend)
        if wanted.weight:
            self._d_weight = _Products(head.weight, row_pieces, backend)
        if wanted.bias:
            wide = torch.promote_types(hidden.dtype, torch.float32)
            self._d_bias = torch.zeros(head.vocab, dtype=wide, device=hidden.device)

    def take(self, rows: slice, columns: slice, d_tile: torch.Tensor) -> None:
        if self._d_hidden is not None:
            self._d_hidden.add(rows, columns.start == 0, d_tile, self._head.weight[columns])
        if self._d_weight is not None:
            self._d_weight.add(columns, rows.start == 0, d_tile.t(), self._hidden[rows])
        if self._d_bias is not None:
            self._d_bias[columns] += d_tile.sum(dim=0, dtype=self._d_bias.dtype)

    def result(self) -> Gradients:
        bias = self._d_bias if self._d_bias is None else self._d_bias.to(self._hidden.dtype)
        hidden = None if self._d_hidden is None else self._d_hidden.result()
        weight = None if self._d_weight is None else self._d_weight.result()
        return hidden, weight, bias


def gradients(
    head: Head,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    scores: Scores,
    grad_logp: torch.Tensor | None,
    grad_entropy: torch.Tensor | None,
    wanted: Wanted,
    backend: Any,
    logits: torch.Tensor | None,
    one_tile: bool,
) -> Gradients:
    """Gradients of the inputs from those of the scores.

    Args:
        logits: the kept (N, V) logits, left as they are (the graph may be walked again); None:
            they are made again.
        one_tile: whether memory allows the whole gradient of the logits at once.
    """
    cut = tiling(hidden, head.vocab, backend)
    if one_tile and hidden.dtype in (torch.bfloat16, torch.float16):
        cut = Tiling(max(len(hidden), 1), head.vocab)
    buffer = backend.memory((cut.rows * cut.columns,), hidden)
    # Through a cap the backward needs both the logits and their gradient.
    second = logits is None and head.softcap is not None
    fresh = torch.empty_like(buffer) if second else buffer
    backward = Backward(head, hidden, wanted, cut, backend)
    for rows in cut.row_slices(len(hidden)):
        part = scores.rows(rows)
        g, h = (None if grad is None else grad[rows] for grad in (grad_logp, grad_entropy))
        for columns in cut.column_slices(head.vocab):
            d_tile = place(buffer, rows, columns)
            if logits is None:
                tile = head.project(hidden[rows], columns, place(fresh, rows, columns))
            else:
                tile = logits[rows, columns]
            where = (tile, targets[rows], columns.start)
            backend.gradient(*where, part, g, h, head.tile_temperature, out=d_tile)
            backward.take(rows, columns, head.through_cap(d_tile, tile))
    return backward.result()


def sweep_with_gradients(
    head: Head,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    grad_logp: torch.Tensor,
    wanted: Wanted,
    backend: Any,
    statistics: bool = False,
) -> tuple[Scores, Gradients]:
    """Scores, and in the same pass the gradients of sum(grad_logp * logp).

    Chunks of whole rows: a chunk's logits are made, scored, turned into their gradient in place,
    and used up.
    """
    cut = whole_rows(hidden, head.vocab)
    buffer = backend.memory((cut.rows * cut.columns,), hidden)
    capped = buffer if head.softcap is None else torch.empty_like(buffer)
    backward = Backward(head, hidden, wanted, cut, backend)
    parts = []
    for rows in cut.row_slices(len(hidden)):
        for columns in cut.column_slices(head.vocab):
            tile = head.project(hidden[rows], columns, place(capped, rows, columns))
            sums = backend.start(len(tile), statistics, hidden.device)
            everything = slice(0, len(tile))
            backend.fold(sums, everything, tile, targets[rows], 0, head.tile_temperature)
            part = backend.finish(sums, head.vocab, head.tile_temperature)
            d_tile = place(buffer, rows, columns)
            where = (tile, targets[rows], 0)
            g = grad_logp[rows]
            backend.gradient(*where, part, g, None, head.tile_temperature, out=d_tile)
            backward.take(rows, columns, head.through_cap(d_tile, tile))
            parts.append(part)
    scores = Scores(
        torch.cat([part.logp for part in parts]),
        torch.cat([part.entropy for part in parts]),
        torch.cat([part.lse for part in parts]),
        torch.cat([part.statistics for part in parts], dim=1),
    )
    return scores, backward.result()
