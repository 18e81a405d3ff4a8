"""The rows of one PPO step in the two shapes they are needed in: padded, and as host-side spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastrl.types import Tokens


@dataclass(frozen=True)
class PPOBatch:
    """One step's rows. B rows, T padded length; frames are (B, T - 1), column t for token t + 1."""

    queries: list[torch.Tensor]  # B tensors (query length,)
    responses: list[torch.Tensor]  # B tensors (response length,)
    model_inputs: dict[str, torch.Tensor]  # as the model takes them, each (B, T)
    left_padded: bool
    mask: torch.Tensor  # (B, T - 1) int64, 1 on response tokens that count
    pads_count: bool  # a left-padded row's positions start at its number of pads

    @property
    def padded_length(self) -> int:
        return self.model_inputs["input_ids"].shape[1]

    def tokens(self, rows: Sequence[int]) -> Tokens:
        """The given rows for the packed pass, scoring exactly their response tokens."""
        lengths = [len(self.queries[i]) + len(self.responses[i]) for i in rows]
        starts = [self.padded_length - n if self.left_padded else 0 for n in lengths]
        ids = self.model_inputs["input_ids"]
        return Tokens(
            ids=ids[torch.as_tensor(rows, device=ids.device)],
            starts=starts,
            lengths=lengths,
            scored=[len(self.queries[i]) for i in rows],
            position_offsets=starts if self.pads_count else None,
        )

    def inputs(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """The given rows of the padded inputs."""
        return {k: v[torch.as_tensor(rows, device=v.device)] for k, v in self.model_inputs.items()}


def response_mask(
    queries: list[torch.Tensor],
    responses: list[torch.Tensor],
    attention_mask: torch.Tensor,
    left_padded: bool,
    response_masks: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Which columns of a decoder's (B, T - 1) frame speak of response tokens; int64.

    Column t holds the log-probability of token t + 1, so a response of R tokens after a query of Q
    counts in columns Q - 1 … Q + R - 2 of an unpadded row, shifted by the row's left padding.
    """
    mask = torch.zeros_like(attention_mask[:, 1:])
    for i, (query, response) in enumerate(zip(queries, responses, strict=True)):
        used = len(query) + len(response)
        start = len(query) - 1 + (attention_mask.shape[1] - used if left_padded else 0)
        counted = 1 if response_masks is None else response_masks[i].to(mask)
        mask[i, start : start + len(response)] = counted
    return mask


def decoder_mask(
    decoder_attention_mask: torch.Tensor, response_masks: list[torch.Tensor] | None = None
) -> torch.Tensor:
    """The (B, T - 1) frame of an encoder–decoder's responses; int64.

    TRL counts from the second predicted token to the last but one: columns 1 … length - 2.
    """
    column = torch.arange(decoder_attention_mask.shape[1] - 1, device=decoder_attention_mask.device)
    end = decoder_attention_mask.sum(1, keepdim=True) - 1
    mask = ((column >= 1) & (column < end)).long() * decoder_attention_mask[:, 1:]
    for i, counted in enumerate(response_masks or []):
        mask[i, : len(counted) - 1] *= counted[1:].to(mask)
    return mask


@dataclass(frozen=True)
class PPOExperience:
    """What a step has collected before it trains; all without gradient, frames (B, T - 1)."""

    logprobs: torch.Tensor  # of the policy at collection
    ref_logprobs: torch.Tensor
    values: torch.Tensor  # masked
    advantages: torch.Tensor  # whitened
    returns: torch.Tensor
    non_score_reward: torch.Tensor  # -KL coefficient · KL
    kls: torch.Tensor
    mask: torch.Tensor  # int64

    def rows(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """What the loss needs of the given rows, under the loss's argument names."""
        index = torch.as_tensor(rows, device=self.mask.device)
        return {
            "old_logprobs": self.logprobs[index],
            "values": self.values[index],
            "mask": self.mask[index],
            "advantages": self.advantages[index],
            "returns": self.returns[index],
        }
