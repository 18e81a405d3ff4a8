"""The CUDA library as namespaces of the operations: allocate outputs, pass pointers and the stream.

Nothing here waits for the device. The files of the operations say what the arguments mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fastrl.ops import _native
from fastrl.ops._linear_tiles import Scores
from fastrl.ops._native import DTYPE_CODE, pointer
from fastrl.ops.shaped_rewards import KIND_CODE

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _stream(tensor: torch.Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream


def _launch(function: str, tensor: torch.Tensor, *arguments: Any) -> None:
    """Call on the tensor's device and its current stream."""
    with torch.cuda.device_of(tensor):
        getattr(_native.load("cuda"), function)(*arguments, _stream(tensor))


def _ask(function: str, tensor: torch.Tensor, *arguments: Any) -> int:
    """A number that depends on the tensor's device."""
    with torch.cuda.device_of(tensor):
        return getattr(_native.load("cuda"), function)(*arguments)


def _maybe(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else pointer(tensor)


def _floats(model: torch.Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=model.device)


class TokenLogprobs:
    """`csrc/cuda/token_logprobs.cu`."""

    @staticmethod
    def forward(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> Three:
        rows, vocab = logits.shape
        splits = _ask("token_logprobs_splits", logits, rows, vocab)
        partials = _floats(logits, rows * splits * 3) if splits > 1 else None
        logp, entropy, lse = (_floats(logits, rows) for _ in range(3))
        _launch(
            "token_logprobs_forward",
            logits,
            logits.data_ptr(),
            DTYPE_CODE[logits.dtype],
            pointer(targets),
            rows,
            vocab,
            logits.stride(0),
            temperature,
            splits,
            _maybe(partials),
            *map(pointer, (logp, entropy, lse)),
        )
        return logp, entropy, lse

    @staticmethod
    def backward(
        logits: torch.Tensor,
        targets: torch.Tensor,
        lse: torch.Tensor,
        entropy: torch.Tensor,
        grad_logp: torch.Tensor | None,
        grad_entropy: torch.Tensor | None,
        temperature: float,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if out is None:
            out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        rows, vocab = logits.shape
        _launch(
            "token_logprobs_backward",
            logits,
            logits.data_ptr(),
            DTYPE_CODE[logits.dtype],
            pointer(targets),
            rows,
            vocab,
            logits.stride(0),
            0,
            vocab,
            temperature,
            pointer(lse),
            0,
            pointer(entropy),
            _maybe(grad_logp),
            _maybe(grad_entropy),
            0,
            out.data_ptr(),
            out.stride(0),
        )
        return out


@dataclass(frozen=True)
class _Sums:
    memory: torch.Tensor  # (N, 6) float64
    statistics: bool


class Tiles:
    """Tiles as fastrl.ops._linear_tiles asks for them, statistics in the same sweep.

    The kernels take tiles of any columns. Whole rows are asked for because GEMMs that are small
    enough to leave their tile in the cache lose more than the fold's second read costs.
    """

    whole_rows = True

    @staticmethod
    def memory(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return like.new_empty(shape)

    @staticmethod
    def start(rows: int, statistics: bool, device: torch.device) -> _Sums:
        memory = torch.empty(rows, 6, dtype=torch.float64, device=device)
        _launch("logprob_fold_start", memory, pointer(memory), rows)
        return _Sums(memory, statistics)

    @staticmethod
    def fold(
        sums: _Sums,
        rows: slice,
        tile: torch.Tensor,
        targets: torch.Tensor,
        first_column: int,
        temperature: float,
    ) -> None:
        _launch(
            "logprob_fold",
            tile,
            tile.data_ptr(),
            DTYPE_CODE[tile.dtype],
            pointer(targets),
            *tile.shape,
            tile.stride(0),
            first_column,
            temperature,
            sums.statistics,
            pointer(sums.memory[rows]),
        )

    @staticmethod
    def finish(sums: _Sums, vocab: int, temperature: float) -> Scores:
        rows = len(sums.memory)
        logp, entropy = (_floats(sums.memory, rows) for _ in range(2))
        lse = _floats(sums.memory, rows, dtype=torch.float64)
        statistics = _floats(sums.memory, 3 if sums.statistics else 0, rows)
        _launch(
            "logprob_fold_finish",
            sums.memory,
            pointer(sums.memory),
            rows,
            vocab,
            temperature,
            sums.statistics,
            *map(pointer, (logp, entropy, lse)),
            *([pointer(line) for line in statistics] or [0, 0, 0]),
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
        _launch(
            "token_logprobs_backward",
            tile,
            tile.data_ptr(),
            DTYPE_CODE[tile.dtype],
            pointer(targets),
            *tile.shape,
            tile.stride(0),
            first_column,
            2**63 - 1,  # a target outside the vocabulary has made the scores NaN
            temperature,
            0,
            *map(pointer, (scores.lse, scores.entropy)),
            _maybe(grad_logp),
            _maybe(grad_entropy),
            pointer(others),
            out.data_ptr(),
            out.stride(0),
        )
        return out


class Gae:
    """`csrc/cuda/gae.cu`."""

    @staticmethod
    def forward(
        rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        advantages, returns = torch.empty_like(rewards), torch.empty_like(rewards)
        places = map(pointer, (rewards, values, mask))
        results = map(pointer, (advantages, returns))
        _launch("gae", rewards, *places, *rewards.shape, gamma, lam, *results)
        return advantages, returns


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied if it does not begin at a multiple of 16 bytes (a slice may not)."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


class Whiten:
    """`csrc/cuda/whiten.cu`."""

    @staticmethod
    def forward(x: torch.Tensor, mask: torch.Tensor, shift_mean: bool) -> torch.Tensor:
        x, mask = _aligned(x), _aligned(mask)
        count = _ask("whiten_shares", x, x.numel())
        shares = _floats(x, count, 3, dtype=torch.float64)
        out = torch.empty_like(x)
        places = map(pointer, (shares, out))
        _launch("whiten", x, pointer(x), pointer(mask), x.numel(), shift_mean, count, *places)
        return out


class ShapedRewards:
    """`csrc/cuda/shaped_rewards.cu`."""

    @staticmethod
    def forward(
        scores: torch.Tensor,
        logp: torch.Tensor,
        ref_logp: torch.Tensor,
        mask: torch.Tensor,
        kl_coef: float,
        kind: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rewards, kl = torch.empty_like(logp), torch.empty_like(logp)
        places = map(pointer, (scores, logp, ref_logp, mask))
        results = map(pointer, (rewards, kl))
        _launch("shaped_rewards", logp, *places, *logp.shape, kl_coef, KIND_CODE[kind], *results)
        return rewards, kl


class Sample:
    """`csrc/cuda/sample.cu`."""

    @staticmethod
    def noise(seeds: torch.Tensor, steps: torch.Tensor, vocab: int) -> torch.Tensor:
        noise = _floats(seeds, len(seeds), vocab)
        _launch("gumbel_noise", seeds, *map(pointer, (seeds, steps, noise)), *noise.shape)
        return noise

    @staticmethod
    def forward(
        logits: torch.Tensor, seeds: torch.Tensor, steps: torch.Tensor, *options: Any
    ) -> Three:
        tokens = torch.empty_like(seeds)
        logp, logp_full = (_floats(logits, len(logits)) for _ in range(2))
        _launch(
            "sample",
            logits,
            pointer(logits),
            DTYPE_CODE[logits.dtype],
            *logits.shape,
            *map(pointer, (seeds, steps)),
            *options,
            *map(pointer, (tokens, logp, logp_full)),
        )
        return tokens, logp, logp_full


class Penalise:
    """`csrc/cuda/penalise.cu`."""

    @staticmethod
    def forward(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
        out = _floats(logits, *logits.shape)
        _launch(
            "penalise",
            logits,
            pointer(logits),
            DTYPE_CODE[logits.dtype],
            *logits.shape,
            pointer(seen),
            seen.shape[1],
            penalty,
            pointer(out),
        )
        return out
