"""The objects that travel between floors. B rows, T padded length, V vocabulary, D hidden size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

# Which tokens of a span want a log-probability, counted within the span and >= 1 (nothing precedes
# its first): an int k means all from k on, an array lists them in rising order.
Scored = int | np.ndarray


@dataclass(frozen=True)
class Shared:
    """Spans that begin with the same tokens, which are then forwarded once for all of them."""

    spans: tuple[int, ...]  # indices of the spans
    length: int  # how many leading tokens they have in common (>= 1)


@dataclass(frozen=True)
class Spans:
    """Where the tokens of a padded batch lie, known on the host before it goes to a device."""

    shape: tuple[int, int]  # (B, T) of the ids that are described
    rows: list[int]  # S: the row of ids each span lies in; a packed batch has many in one row
    starts: list[int]  # S: column of the span's first token
    lengths: list[int]  # S: tokens in the span
    scored: Sequence[Scored]  # S
    shared: tuple[Shared, ...] = ()

    def tokens(self, ids: torch.Tensor, targets: torch.Tensor | None = None) -> Tokens:
        """The spans with their (B, T) ids, and targets where these differ."""
        return Tokens(
            ids,
            self.starts,
            self.lengths,
            self.scored,
            rows=self.rows,
            shared=self.shared,
            targets=targets,
        )


@dataclass(frozen=True)
class Tokens:
    """Token ids with their spans known on the host, so that unpadding never waits for a device.

    Span i is `ids[rows[i], starts[i] : starts[i] + lengths[i]]`; what no span covers is padding.
    """

    ids: torch.Tensor  # (B, T) int64
    starts: list[int]  # S: column of the span's first token
    lengths: list[int]  # S: tokens in the span
    scored: Sequence[Scored]  # S: see `Scored`
    position_offsets: list[int] | None = None  # S: position id of the first token; None means 0
    rows: list[int] | None = None  # S: the row the span lies in; None: span i is row i, S = B
    shared: tuple[Shared, ...] = ()  # no span in two of them
    # (B, T) int64: the tokens to be scored where they are not those of `ids` (labels); None: ids
    targets: torch.Tensor | None = None

    @property
    def attention_mask(self) -> torch.Tensor:
        """(B, T) int64, 1 on the tokens of each row; for one span a row."""
        column = torch.arange(self.ids.shape[1], device=self.ids.device)
        start = torch.tensor(self.starts, device=self.ids.device)[:, None]
        length = torch.tensor(self.lengths, device=self.ids.device)[:, None]
        return ((column >= start) & (column < start + length)).long()


@dataclass(frozen=True)
class LogProbs:
    """What a policy says of given tokens. Column t speaks of token t + 1; the unscored are 0."""

    logp: torch.Tensor  # (B, T - 1) fp32
    entropy: torch.Tensor  # (B, T - 1) fp32
    # (B, T - 1) fp32 value of the state before token t + 1; None without a value head
    values: torch.Tensor | None
    mask: torch.Tensor  # (B, T - 1) bool, True on scored tokens
    # (B, T - 1) fp32 each, without gradient: those asked for of "top1", "mean_logit", "log_sum_sq"
    stats: dict[str, torch.Tensor] | None = None
    # scalar with gradient: the router's load-balancing loss of a mixture of experts, if asked for
    aux_loss: torch.Tensor | None = None
