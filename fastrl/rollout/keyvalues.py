"""Keys and values of prompts and answers, and the attention of one token a row over them.

A prompt's keys are kept once, whatever the number of its answers. Slots 0 to n - 1 hold the rows
that are running, without gaps, so that a step reads views and copies nothing; what leaves is
overwritten by the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fastrl.models.attention import Segments, attend_segments
from fastrl.ops.decode_attention import Decoding, decode_attention


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


@dataclass
class Decode:
    """Attention of one new token for each running row, over its prompt and its answer so far."""

    at: Decoding
    prompts: Slots
    answers: Slots
    room: tuple[int, int]  # slots and tokens of an answer to make room for
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
        """(1, n, H, Dh) for a query (1, H, n, Dh), a key and a value (1, Hkv, n, Dh)."""
        own = self.answers.layer(self._layer, key, *self.room)
        common = self.prompts.layers[self._layer]
        self._layer += 1
        self._write(own, key, value)
        queries = query[0].transpose(0, 1)
        return decode_attention(queries, common, own, self.at, scaling, window)[None]

    def _write(self, own: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put the new token's key and value behind those of its row."""
        n = key.shape[2]
        new = torch.stack([key[0], value[0]]).transpose(1, 2)[:, :, :, None]  # (2, n, Hkv, 1, Dh)
        index = self.at.answer_lengths.view(1, n, 1, 1, 1).expand_as(new)
        own[:, :n].scatter_(3, index, new)
