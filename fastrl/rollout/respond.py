"""Responses of one length to prompts of one length, as the first PPO scripts drew them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fastrl.models import door
from fastrl.models.embeddings import position_limit, vocabulary_size
from fastrl.ops.sample import sample
from fastrl.rollout.completion import Request
from fastrl.rollout.engine import Engine
from fastrl.rollout.prompts import row_seeds
from fastrl.rollout.sampling import Sampling
from fastrl.rollout.serving import Served, served, serving


def respond_to_batch(
    model: nn.Module,
    queries: torch.Tensor | Sequence[torch.Tensor],
    txt_len: int = 20,
    top_k: int = 0,
    top_p: float = 1.0,
) -> torch.Tensor:
    """Draw `txt_len` tokens after each prompt; an end-of-sequence token ends nothing.

    The engine answers, with each token fed once; a model that it cannot serve, which may be any
    `nn.Module` that takes ids (B, T) and whose first output is logits (B, T, V), is fed all
    tokens at each step.
    Both are in evaluation mode meanwhile and keep no gradient. Draws follow torch's seed.

    Args:
        model: a causal language model, with a value head or not, or another module as above.
        queries: (B, L) int64, or B tensors (L,); padding among them would count as tokens.
        txt_len: tokens drawn, at least 1.
        top_k, top_p: only the k most probable tokens are drawn, and of those the most probable
            that together reach p; 0 and 1 are off.

    Returns:
        (B, txt_len) int64.

    Raises:
        ValueError: for a model that is no module, prompts of unequal length or none, ids the model
            does not embed, more tokens than it has positions for, or a txt_len, top_k or top_p out
            of range.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model must be an nn.Module, got {type(model).__name__}; a function fits in the "
            "forward of one"
        )
    ids = _checked(queries, txt_len)
    sampling = Sampling(top_k=top_k, top_p=top_p)
    seeds = [each[0] for each in row_seeds(None, len(ids), 1)]
    try:
        instance, _ = door.find(model)
    except TypeError:
        return _by_forward(model, ids, seeds, sampling, txt_len)
    _check_fit(instance, ids, txt_len)
    engine = served(model)
    if isinstance(engine, str):
        return _by_forward(model, ids, seeds, sampling, txt_len)
    return _by_engine(model, engine, ids, seeds, sampling, txt_len)


def _checked(queries: Any, txt_len: int) -> torch.Tensor:
    if not isinstance(queries, torch.Tensor):
        if len({len(row) for row in queries}) != 1:
            raise ValueError(
                "queries: prompts of one length are needed, got lengths "
                f"{[len(row) for row in queries]}; PPOTrainer.generate takes any"
            )
        queries = torch.stack(list(queries))
    if queries.dim() != 2 or not queries.numel():
        raise ValueError(f"queries must be (B, L) token ids, got shape {tuple(queries.shape)}")
    if txt_len < 1:
        raise ValueError(f"txt_len={txt_len}: at least one token is to be drawn")
    return queries.long()


def _check_fit(instance: Any, ids: torch.Tensor, txt_len: int) -> None:
    vocabulary, longest = vocabulary_size(instance), position_limit(instance)
    if int(ids.min()) < 0 or (vocabulary is not None and int(ids.max()) >= vocabulary):
        raise ValueError(f"queries holds ids outside the model's vocabulary of {vocabulary}")
    if longest is not None and ids.shape[1] + txt_len > longest:
        raise ValueError(
            f"queries of {ids.shape[1]} tokens and txt_len={txt_len} are more than the model's "
            f"{longest} positions"
        )


def _by_engine(
    model: nn.Module,
    engine: Served,
    ids: torch.Tensor,
    seeds: list[int],
    sampling: Sampling,
    txt_len: int,
) -> torch.Tensor:
    requests = [
        Request(tuple(row), (seed,), (txt_len,))
        for row, seed in zip(ids.tolist(), seeds, strict=True)
    ]
    with serving(model, engine):
        answers = Engine(engine, requests, sampling).run()
    return torch.tensor([only.token_ids for (only,) in answers], device=ids.device)


@torch.no_grad()
def _by_forward(
    model: nn.Module, ids: torch.Tensor, seeds: list[int], sampling: Sampling, txt_len: int
) -> torch.Tensor:
    training = model.training
    model.eval()
    streams = torch.tensor(seeds, device=ids.device)
    try:
        for step in range(txt_len):
            logits = model(ids)[0][:, -1]
            drawn, _, _ = sample(logits, streams, step, top_k=sampling.top_k, top_p=sampling.top_p)
            ids = torch.cat([ids, drawn[:, None]], dim=1)
    finally:
        model.train(training)
    return ids[:, -txt_len:]
