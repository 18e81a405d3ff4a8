"""The objects that travel between floors. B rows, T padded length, V vocabulary, D hidden size."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tokens:
    """Padded rows with their spans known on the host, so that unpadding never waits for a device.

    Row i is `ids[i, starts[i] : starts[i] + lengths[i]]`; all else is padding.
    """

    ids: torch.Tensor  # (B, T) int64
    starts: list[int]  # B: padding before the row's first token
    lengths: list[int]  # B: tokens in the row
    scored: list[
        int
    ]  # B: index within the row (>= 1) of the first token whose log-probability is wanted
    position_offsets: list[int] | None = (
        None  # B: position id of the row's first token; None means 0
    )

    @property
    def attention_mask(self) -> torch.Tensor:
        """(B, T) int64, 1 on the row's tokens."""
        column = torch.arange(self.ids.shape[1], device=self.ids.device)
        start = torch.tensor(self.starts, device=self.ids.device)[:, None]
        length = torch.tensor(self.lengths, device=self.ids.device)[:, None]
        return ((column >= start) & (column < start + length)).long()


@dataclass(frozen=True)
class LogProbs:
    """What a policy says of given tokens. Column t speaks of token t + 1; the unscored are 0."""

    logp: torch.Tensor  # (B, T - 1) fp32
    entropy: torch.Tensor  # (B, T - 1) fp32
    values: (
        torch.Tensor | None
    )  # (B, T - 1) fp32 value of the state before token t + 1; None without a value head
    mask: torch.Tensor  # (B, T - 1) bool, True on scored tokens
