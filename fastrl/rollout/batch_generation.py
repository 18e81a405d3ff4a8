"""Padded prompts answered through a model's own `generate`, with the scores it drew from."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig

from fastrl.data.padding import pad


def generate(
    lm_backbone: Any, queries: torch.Tensor, pad_token_id: int, generation_config: GenerationConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts with their responses, and the scores each token was drawn from.

    Args:
        lm_backbone: a model with transformers' `generate`.
        queries: (B, L) int64, padded in front.
        pad_token_id: what pads them; it is not attended to.
        generation_config: how to draw.

    Returns:
        (B, L + N) int64 with the prompts as they were, and (B, N, V) scores after all filters.
    """
    mask = queries != pad_token_id
    output = lm_backbone.generate(
        input_ids=queries.masked_fill(~mask, 0),
        attention_mask=mask,
        generation_config=generation_config,
        return_dict_in_generate=True,
        output_scores=True,
    )
    made = output.sequences[:, queries.shape[1] :]
    return torch.cat([queries, made], dim=1), torch.stack(output.scores, dim=1)


@torch.no_grad()
def batch_generation(
    model: Any,
    queries: torch.Tensor,
    local_rollout_forward_batch_size: int,
    pad_token_id: int,
    generation_config: GenerationConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `generate`, some prompts at a time; shorter ones are padded behind, their scores with 0.

    Args:
        local_rollout_forward_batch_size: how many prompts at a time.
        model, queries, pad_token_id, generation_config: as there.
    """
    rows: list[torch.Tensor] = []
    scores: list[torch.Tensor] = []
    for part in queries.split(local_rollout_forward_batch_size):
        made, drawn_from = generate(model, part, pad_token_id, generation_config)
        rows += made
        scores += drawn_from
    return pad(rows, pad_token_id), pad(scores, 0)
