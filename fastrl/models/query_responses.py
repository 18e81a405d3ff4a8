"""Padded passes over prompts with their responses, as TRL's `train()` form of PPO made them.

fastrl's own trainers compute no padding; these are for scripts that call TRL's functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastrl.ops.classic import first_true_indices


def _inputs(query_responses: torch.Tensor, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Rows padded in front, behind or both, with positions counted from each row's first token."""
    mask = query_responses != pad_token_id
    return {
        "input_ids": query_responses.masked_fill(~mask, 0),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - mask.long()),
    }


def forward(model: nn.Module, query_responses: torch.Tensor, pad_token_id: int) -> Any:
    """A model's output, with hidden states, for rows with padding anywhere.

    Args:
        model: a transformers model.
        query_responses: (B, T) int64, `pad_token_id` where there is no token.
        pad_token_id: counts nowhere, in a response neither.
    """
    inputs = _inputs(query_responses, pad_token_id)
    return model(**inputs, return_dict=True, output_hidden_states=True)


def get_reward(
    model: nn.Module, query_responses: torch.Tensor, pad_token_id: int, context_length: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards of responses, each at its last token before the first padding.

    Args:
        model: a sequence classifier with one label, whose head is `score`.
        query_responses: (B, T) int64, prompts padded in front and responses behind.
        pad_token_id: the padding token.
        context_length: columns of prompts.

    Returns:
        the score of every column (B, T, 1), the rewards (B,) and their columns (B,) int64.
    """
    prefix: Any = model.base_model_prefix
    backbone = getattr(model, prefix)
    output = backbone(**_inputs(query_responses, pad_token_id), return_dict=True, use_cache=False)
    head: Any = model.score
    scores = head(output.last_hidden_state)
    ended = query_responses[:, context_length:] == pad_token_id
    last = first_true_indices(ended) - 1 + context_length
    rows = torch.arange(len(scores), device=scores.device)
    return scores, scores[rows, last].squeeze(-1), last
