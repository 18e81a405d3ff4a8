"""NEFTune (arXiv 2310.05914) on packed rows: noise on the embeddings by each span's own length.

transformers' hook bounds the noise by alpha / sqrt(L D), L being the columns of what it is given,
so that packing or padding would change it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

_ALPHA = "neftune_noise_alpha"  # set on the embeddings by transformers' Trainer


def active(model: PreTrainedModel) -> bool:
    """Whether the model's embeddings are given noise in the mode it is in."""
    embeddings = model.get_input_embeddings()
    return embeddings.training and getattr(embeddings, _ALPHA, None) is not None


def neftune_post_forward_hook(module: nn.Module, input: Any, output: torch.Tensor) -> torch.Tensor:
    """A forward hook of embeddings (B, T, D): in training mode, noise within ±alpha / sqrt(T D).

    `module.register_forward_hook(neftune_post_forward_hook)` with `module.neftune_noise_alpha` set
    is what the trainers' `neftune_noise_alpha` does by itself, there by each row's own length.

    Args:
        module: the embeddings.
        input: not read.
        output: what they gave.
    """
    if not module.training:
        return output
    bound = getattr(module, _ALPHA) / (output.shape[1] * output.shape[2]) ** 0.5
    return output + torch.empty_like(output).uniform_(-bound, bound)


@contextmanager
def by_span(model: PreTrainedModel, lengths: np.ndarray) -> Iterator[None]:
    """Inside, the noise of a token is bounded by alpha / sqrt(L D), L being its span's length.

    Args:
        lengths: (rows or 1, columns or 1) L of each token fed.
    """
    if not active(model):
        yield
        return
    embeddings = model.get_input_embeddings()
    alpha = getattr(embeddings, _ALPHA)

    def add(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        bound = torch.from_numpy(alpha / np.sqrt(lengths * output.shape[-1]))
        bound = bound.to(output.device, output.dtype, non_blocking=True)
        return output + torch.empty_like(output).uniform_(-1, 1) * bound[..., None]

    handle = embeddings.register_forward_hook(add)
    setattr(embeddings, _ALPHA, 0.0)
    try:
        yield
    finally:
        handle.remove()
        setattr(embeddings, _ALPHA, alpha)
