"""Keys and values of prompts and answers, and the attention of one token a row over them.

A prompt's keys are kept once, whatever the number of its answers. Slots 0 to n - 1 hold the rows
that are running, without gaps, so that a step reads views and copies nothing; what leaves is
overwritten by the last.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from fastrl.models.attention import Segments, attend_segments


class Slots:
    """Per layer (2, slots, Hkv, tokens, Dh): keys and values; both sizes grow by doubling."""

    def __init__(self) -> None:
        self.layers: list[torch.Tensor] = []

    def layer(self, index: int, like: torch.Tensor, slots: int, tokens: int) -> torch.Tensor:
        """The layer's tensor, with at least that much room.

        Args:
            index: at most one more than the layers there are.
            like: a key (..., Hkv, N, Dh) of this layer.
        """
        heads, _, width = like.shape[-3:]
        if index == len(self.layers):
            self.layers.append(like.new_empty(2, 0, heads, 0, width))
        held = self.layers[index]
        before = (held.shape[1], held.shape[3])
        if before[0] < slots or before[1] < tokens:
            room = [
                had if had >= need else max(need, 2 * had)
                for had, need in zip(before, (slots, tokens), strict=True)
            ]
            grown = held.new_zeros(2, room[0], heads, room[1], width)
            grown[:, : before[0], :, : before[1]] = held
            self.layers[index] = held = grown
        return held

    def move(self, source: int, target: int, tokens: int) -> None:
        """Let one slot hold the first tokens of another."""
        for layer in self.layers:
            layer[:, target, :, :tokens] = layer[:, source, :, :tokens]


@dataclass
class Prefill:
    """Attention of whole prompts end to end, whose keys and values are kept."""

    lengths: tuple[int, ...]
    store: Slots
    first: int  # slot of the first prompt; the others follow
    _layer: int = 0

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        dropout: float,
        window: int | None,
    ) -> torch.Tensor:
        """As `fastrl.models.attention.attend_segments`."""
        room = self.first + len(self.lengths), max(self.lengths)
        kept = self.store.layer(self._layer, key, *room)
        self._layer += 1
        start = 0
        for slot, length in enumerate(self.lengths, self.first):
            kept[0, slot, :, :length] = key[0, :, start : start + length]
            kept[1, slot, :, :length] = value[0, :, start : start + length]
            start += length
        segments = Segments.of_lengths(list(self.lengths))
        return attend_segments(query, key, value, segments, scaling, dropout, window)


@dataclass(frozen=True)
class Places:
    """Where the n running rows and the p prompts they continue are; all on the device."""

    prompts: int  # p
    longest_prompt: int  # P
    longest_answer: int  # T, the new token included
    lone: bool  # every prompt has one row, in the same order
    rows: torch.Tensor  # (p * R,) int64: the rows of each prompt, filled up with row 0
    back: torch.Tensor  # (n,) int64: where each row stands in `rows`
    prompt_lengths: torch.Tensor  # (n,) int64
    answer_lengths: torch.Tensor  # (n,) int64, without the new token

    @staticmethod
    def of(
        prompt: list[int], answers: list[int], prompts: list[int], device: torch.device
    ) -> Places:
        """From each row's prompt slot and answer length, and each prompt slot's length."""
        n, p = len(prompt), len(prompts)
        slot = np.asarray(prompt, dtype=np.int64)
        order = np.argsort(slot, kind="stable")
        counts = np.bincount(slot, minlength=p)
        starts = np.cumsum(counts) - counts
        rank = np.empty(n, dtype=np.int64)
        rank[order] = np.arange(n) - np.repeat(starts, counts)
        most = int(counts.max())
        back = slot * most + rank
        rows = np.zeros(p * most, dtype=np.int64)
        rows[back] = np.arange(n)
        lengths = np.asarray(prompts, dtype=np.int64)[slot]
        parts = (rows, back, lengths, np.asarray(answers, dtype=np.int64))
        joined = torch.from_numpy(np.concatenate(parts)).to(device)
        lone = n == p and bool((slot == np.arange(n)).all())
        split = joined.split([len(part) for part in parts])
        return Places(p, max(prompts), max(answers) + 1, lone, *split)


@dataclass
class Decode:
    """Attention of one new token for each running row, over its prompt and its answer so far."""

    places: Places
    prompts: Slots
    answers: Slots
    room: tuple[int, int]  # slots and tokens of an answer to make room for
    _layer: int = 0
    _bias: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        dropout: float,
        window: int | None,
    ) -> torch.Tensor:
        """(1, n, H, Dh) for a query (1, H, n, Dh), a key and a value (1, Hkv, n, Dh)."""
        at = self.places
        n, heads, kv_heads = query.shape[2], query.shape[1], key.shape[1]
        own = self.answers.layer(self._layer, key, *self.room)
        common = self.prompts.layers[self._layer][:, : at.prompts, :, : at.longest_prompt]
        self._layer += 1
        self._write(own, key, value)
        own = own[:, :n, :, : at.longest_answer]
        # (n, Hkv, H / Hkv, Dh)
        q = query[0].transpose(0, 1).reshape(n, kv_heads, heads // kv_heads, -1)
        q = q * (q.shape[-1] ** -0.5 if scaling is None else scaling)
        scores = torch.cat([self._of_prompts(q, common[0].mT), q @ own[0].mT], dim=-1)
        scores = scores + self._mask(window, scores)
        weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        weights = weights.to(value.dtype)
        before, after = weights.split([at.longest_prompt, at.longest_answer], dim=-1)
        mixed = self._of_prompts(before, common[1]) + after @ own[1]
        return mixed.reshape(1, n, heads, -1)

    def _write(self, own: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put the new token's key and value behind those of its row."""
        n = key.shape[2]
        new = torch.stack([key[0], value[0]]).transpose(1, 2)[:, :, :, None]  # (2, n, Hkv, 1, Dh)
        index = self.places.answer_lengths.view(1, n, 1, 1, 1).expand_as(new)
        own[:, :n].scatter_(3, index, new)

    def _of_prompts(self, of_rows: torch.Tensor, of_prompts: torch.Tensor) -> torch.Tensor:
        """Row by row the product with a matrix of the row's prompt.

        Args:
            of_rows: (n, Hkv, g, a).
            of_prompts: (p, Hkv, a, b).

        Returns:
            (n, Hkv, g, b).
        """
        at = self.places
        if at.lone:
            return of_rows @ of_prompts
        _, kv_heads, group, inner = of_rows.shape
        grid = of_rows.index_select(0, at.rows).view(at.prompts, -1, kv_heads, group, inner)
        each = grid.shape[1]
        grid = grid.transpose(1, 2).reshape(at.prompts, kv_heads, each * group, inner)
        product = (grid @ of_prompts).view(at.prompts, kv_heads, each, group, -1).transpose(1, 2)
        return product.reshape(at.prompts * each, kv_heads, group, -1).index_select(0, at.back)

    def _mask(self, window: int | None, scores: torch.Tensor) -> torch.Tensor:
        """(n, 1, 1, P + T) to add to the scores: -inf where a row has no such key in reach."""
        if window not in self._bias:
            at = self.places
            column = torch.arange(scores.shape[-1], device=scores.device)
            behind = (column - at.longest_prompt)[None]  # index within the answer
            prompt, answer = at.prompt_lengths[:, None], at.answer_lengths[:, None]
            seen = torch.where(behind < 0, column < prompt, behind <= answer)
            if window is not None:
                position = torch.where(behind < 0, column[None], prompt + behind)
                seen &= position > prompt + answer - window
            bias = torch.zeros_like(seen, dtype=scores.dtype).masked_fill_(~seen, -torch.inf)
            self._bias[window] = bias[:, None, None]
        return self._bias[window]
