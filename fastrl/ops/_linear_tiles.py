"""What the engines of the linear log-probability ask of a backend: scores and gradients of tiles.

A tile is rows x columns of the (N, V) logits that never have to exist at once. A backend has
    whole_rows   True if a tile must hold all V columns
    memory(shape, like) -> an uninitialised tensor of the dtype and device of `like`
    start(rows, statistics, device) -> sums, passed back to it
    fold(sums, rows, tile, targets, first_column, temperature)   adds a tile; targets of its rows
    finish(sums, vocab, temperature) -> Scores
    gradient(tile, targets, first_column, scores, grad_logp, grad_entropy, temperature, out)
The tile's last stride is 1. Temperatures may differ from the caller's: the head's scale is in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fastrl.ops import _native
from fastrl.ops.token_logprobs import TOKEN_LOGPROBS

STATISTICS = ("top1", "mean_logit", "log_sum_sq")


@dataclass(frozen=True)
class Scores:
    """What a sweep found, by row."""

    logp: torch.Tensor  # (N,) float32
    entropy: torch.Tensor  # (N,) float32
    lse: torch.Tensor  # (N,) float64
    statistics: torch.Tensor  # (3, N) float32 in the order of STATISTICS, or (0, N)

    def rows(self, rows: slice) -> Scores:
        """Those of some rows."""
        statistics = self.statistics[:, rows]
        return Scores(self.logp[rows], self.entropy[rows], self.lse[rows], statistics)


@dataclass(frozen=True)
class _Sums:
    memory: torch.Tensor  # (N, 6) float64
    statistics: bool


class CppTiles:
    """Tiles of any columns, folded in C++."""

    whole_rows = False

    @staticmethod
    def memory(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        fresh = like.new_empty(shape)
        _native.load("cpu").expect_writes(_native.pointer(fresh), fresh.nbytes)
        return fresh

    @staticmethod
    def start(rows: int, statistics: bool, device: torch.device) -> _Sums:
        sums = _Sums(torch.empty(rows, 6, dtype=torch.float64), statistics)
        _native.load("cpu").logprob_fold_start(_native.pointer(sums.memory), rows)
        return sums

    @staticmethod
    def fold(
        sums: _Sums,
        rows: slice,
        tile: torch.Tensor,
        targets: torch.Tensor,
        first_column: int,
        temperature: float,
    ) -> None:
        _native.load("cpu").logprob_fold(
            tile.data_ptr(),
            _native.DTYPE_CODE[tile.dtype],
            _native.pointer(targets),
            *tile.shape,
            tile.stride(0),
            first_column,
            temperature,
            sums.statistics,
            _native.pointer(sums.memory[rows]),
            torch.get_num_threads(),
        )

    @staticmethod
    def finish(sums: _Sums, vocab: int, temperature: float) -> Scores:
        rows = len(sums.memory)
        logp, entropy = torch.empty(rows), torch.empty(rows)
        lse = torch.empty(rows, dtype=torch.float64)
        statistics = torch.empty(3 if sums.statistics else 0, rows)
        places = [_native.pointer(line) for line in statistics] or [0, 0, 0]
        _native.load("cpu").logprob_fold_finish(
            _native.pointer(sums.memory),
            rows,
            vocab,
            temperature,
            sums.statistics,
            *map(_native.pointer, (logp, entropy, lse)),
            *places,
        )
        return Scores(logp, entropy, lse, statistics)

    @staticmethod
    def gradient(
        tile: torch.Tensor,
        targets: torch.Tensor,
        first_column: int,
        scores: Scores,
        grad_logp: torch.Tensor | None,
        grad_entropy: torch.Tensor | None,
        temperature: float,
        out: torch.Tensor,
    ) -> torch.Tensor:
        others = -torch.expm1(scores.logp)  # 1 - p, which keeps its digits as p -> 1
        _native.load("cpu").token_logprobs_backward(
            tile.data_ptr(),
            _native.DTYPE_CODE[tile.dtype],
            _native.pointer(targets),
            *tile.shape,
            tile.stride(0),
            first_column,
            temperature,
            *map(_native.pointer, (scores.lse, scores.entropy)),
            0 if grad_logp is None else _native.pointer(grad_logp),
            0 if grad_entropy is None else _native.pointer(grad_entropy),
            _native.pointer(others),
            out.data_ptr(),
            out.stride(0),
            torch.get_num_threads(),
        )
        return out


class WholeRows:
    """Tiles of whole rows, handed to whichever backend of `token_logprobs` serves them."""

    whole_rows = True

    @staticmethod
    def memory(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return like.new_empty(shape)

    @staticmethod
    def start(rows: int, statistics: bool, device: torch.device) -> list[tuple[Any, ...]]:
        return [(statistics,)]

    @staticmethod
    def fold(
        sums: list[tuple[Any, ...]],
        rows: slice,
        tile: torch.Tensor,
        targets: torch.Tensor,
        first_column: int,
        temperature: float,
    ) -> None:
        results = TOKEN_LOGPROBS.pick(tile, targets).forward(tile, targets, temperature)
        statistics = tile.new_empty(0, len(tile), dtype=results[0].dtype)
        if sums[0][0]:
            statistics = statistics_of(tile, targets, results[2], temperature)
        sums.append((*results, statistics))

    @staticmethod
    def finish(sums: list[tuple[Any, ...]], vocab: int, temperature: float) -> Scores:
        logp, entropy, lse, statistics = (
            torch.cat(column, dim=-1) for column in zip(*sums[1:], strict=True)
        )
        return Scores(logp, entropy, lse.double(), statistics)

    @staticmethod
    def gradient(
        tile: torch.Tensor,
        targets: torch.Tensor,
        first_column: int,
        scores: Scores,
        grad_logp: torch.Tensor | None,
        grad_entropy: torch.Tensor | None,
        temperature: float,
        out: torch.Tensor,
    ) -> torch.Tensor:
        lse = scores.lse.to(scores.entropy.dtype)
        return TOKEN_LOGPROBS.pick(tile, targets).backward(
            tile, targets, lse, scores.entropy, grad_logp, grad_entropy, temperature, out=out
        )


def statistics_of(
    logits: torch.Tensor, targets: torch.Tensor, lse: torch.Tensor, temperature: float
) -> torch.Tensor:
    """(3, rows) of STATISTICS from whole rows of logits."""
    z = logits.to(lse.dtype) / temperature
    target = targets.clamp(0, z.shape[1] - 1)[:, None]
    top1 = (z.gather(1, target)[:, 0] >= z.amax(dim=1)).to(z.dtype)
    log_sum_sq = torch.logsumexp(2 * z, dim=1) - 2 * lse
    return torch.stack([top1, z.mean(dim=1), log_sum_sq])
