"""Attention of one new token a row, over a prompt that rows may share and over the row's answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastrl.ops import _native
from fastrl.ops._dispatch import Op
from fastrl.ops._inputs import require_floating


@dataclass(frozen=True)
class Decoding:
    """What n rows continue: p prompts and their own answers; tensors on the device."""

    prompts: int  # p
    longest_prompt: int  # P
    longest_answer: int  # T, the new token included
    alone: bool  # row i continues prompt i, and every prompt has one row
    prompt_of: torch.Tensor  # (n,) int64 slot of each row's prompt
    prompt_lengths: torch.Tensor  # (n,) int64
    answer_lengths: torch.Tensor  # (n,) int64, without the new token, which stands behind
    rows: torch.Tensor  # (p * R,) int64: the rows of each prompt, filled up with row 0
    back: torch.Tensor  # (n,) int64: where each row stands in `rows`

    @staticmethod
    def of(
        prompt_of: Sequence[int],
        answers: Sequence[int],
        prompts: Sequence[int],
        device: torch.device,
    ) -> Decoding:
        """From each row's prompt slot and answer length, and the length in each prompt slot."""
        n, p = len(prompt_of), len(prompts)
        slot = np.asarray(prompt_of, dtype=np.int64)
        order = np.argsort(slot, kind="stable")
        counts = np.bincount(slot, minlength=p)
        rank = np.empty(n, dtype=np.int64)
        rank[order] = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
        most = int(counts.max())
        back = slot * most + rank
        rows = np.zeros(p * most, dtype=np.int64)
        rows[back] = np.arange(n)
        lengths = np.asarray(prompts, dtype=np.int64)[slot]
        parts = (slot, lengths, np.asarray(answers, dtype=np.int64), rows, back)
        joined = torch.from_numpy(np.concatenate(parts)).to(device)
        alone = n == p and bool((slot == np.arange(n)).all())
        split = joined.split([len(part) for part in parts])
        return Decoding(p, max(prompts), max(answers) + 1, alone, *split)


def _of_prompts(at: Decoding, of_rows: torch.Tensor, of_prompts: torch.Tensor) -> torch.Tensor:
    """Row by row the product with a matrix of the row's prompt, which is read once for its rows.

    Args:
        of_rows: (n, Hkv, g, a).
        of_prompts: (p, Hkv, a, b).

    Returns:
        (n, Hkv, g, b).
    """
    if at.alone:
        return of_rows @ of_prompts
    _, heads, group, inner = of_rows.shape
    grid = of_rows.index_select(0, at.rows).view(at.prompts, -1, heads, group, inner)
    each = grid.shape[1]
    grid = grid.transpose(1, 2).reshape(at.prompts, heads, each * group, inner)
    product = (grid @ of_prompts).view(at.prompts, heads, each, group, -1).transpose(1, 2)
    return product.reshape(at.prompts * each, heads, group, -1).index_select(0, at.back)


def _seen(at: Decoding, window: int | None) -> torch.Tensor:
    """(n, P + T) bool: the columns that hold a key of the row, within the window."""
    column = torch.arange(at.longest_prompt + at.longest_answer, device=at.rows.device)
    behind = (column - at.longest_prompt)[None]  # index within the answer
    prompt, answer = at.prompt_lengths[:, None], at.answer_lengths[:, None]
    seen = torch.where(behind < 0, column < prompt, behind <= answer)
    if window is not None:
        position = torch.where(behind < 0, column[None], prompt + behind)
        seen &= position > prompt + answer - window
    return seen


class _Reference:
    @staticmethod
    def forward(
        query: torch.Tensor,
        prompts: torch.Tensor,
        answers: torch.Tensor,
        at: Decoding,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        n, heads, width = query.shape
        common = prompts[:, : at.prompts, :, : at.longest_prompt]
        own = answers[:, :n, :, : at.longest_answer]
        kv_heads = own.shape[2]
        q = query.reshape(n, kv_heads, heads // kv_heads, width) * scaling
        scores = torch.cat([_of_prompts(at, q, common[0].mT), q @ own[0].mT], dim=-1)
        seen = _seen(at, window)[:, None, None]
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1).to(query.dtype)
        before, after = weights.split([at.longest_prompt, at.longest_answer], dim=-1)
        # What no row has written is finite (see the caches), and weighs nothing.
        mixed = _of_prompts(at, before, common[1]) + after @ own[1]
        return mixed.reshape(n, heads, width)


class _Cpp:
    @staticmethod
    def forward(
        query: torch.Tensor,
        prompts: torch.Tensor,
        answers: torch.Tensor,
        at: Decoding,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        if query.dtype not in (torch.float32, torch.bfloat16):
            return _Reference.forward(query, prompts, answers, at, scaling, window)
        query = query.contiguous()
        out = torch.empty_like(query)
        n, heads, width = query.shape
        held = [
            number
            for kept in (prompts, answers)
            for number in (_native.pointer(kept), kept.shape[1], kept.shape[3])
        ]
        _native.load("cpu").decode_attention(
            _native.pointer(query),
            _native.DTYPE_CODE[query.dtype],
            n,
            heads,
            answers.shape[2],
            width,
            *held,
            *map(_native.pointer, (at.prompt_of, at.prompt_lengths, at.answer_lengths)),
            scaling,
            window or 0,
            _native.pointer(out),
            torch.get_num_threads(),
        )
        return out


DECODE_ATTENTION = Op("decode_attention", reference=_Reference, cpp=_Cpp)


def decode_attention(
    query: torch.Tensor,
    prompts: torch.Tensor,
    answers: torch.Tensor,
    at: Decoding,
    scaling: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """softmax(scaling · q kᵀ) v of each row over the keys of its prompt and of its answer so far.

    Args:
        query: (n, H, Dh), of the new token of each row.
        prompts: (2, slots, Hkv, room, Dh) keys and values of prompts, Hkv dividing H; contiguous.
            What is not written must be finite.
        answers: likewise of answers, row i in slot i; the new token's are written already.
        at: which prompt each row continues, and how long both are.
        scaling: None for Dh ** -0.5.
        window: how many keys a query sees, its own included; None for all.

    Returns:
        (n, H, Dh) in the query's dtype. No gradient.

    Raises:
        TypeError, ValueError: for tensors whose shapes or dtypes do not fit together.
    """
    require_floating("query", query)
    n, heads, width = query.shape
    for name, kept, slots, room in (
        ("prompts", prompts, at.prompts, at.longest_prompt),
        ("answers", answers, n, at.longest_answer),
    ):
        if kept.dtype != query.dtype:
            raise TypeError(f"{name} are {kept.dtype}, the query is {query.dtype}")
        fits = kept.dim() == 5 and kept.shape[0] == 2 and kept.shape[4] == width
        if not fits or kept.shape[1] < slots or kept.shape[3] < room or heads % kept.shape[2]:
            raise ValueError(
                f"{name} of shape {tuple(kept.shape)} do not hold (2, {slots}, Hkv, {room}, "
                f"{width}) for {heads} heads"
            )
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 or None, not {window}")
    factor = width**-0.5 if scaling is None else scaling
    with torch.no_grad():
        backend = DECODE_ATTENTION.pick(query, prompts, answers)
        return backend.forward(query, prompts, answers, at, factor, window)
