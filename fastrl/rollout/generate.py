"""Prompts to responses through a model's own `generate`, in left-padded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

LengthSampler = Callable[[], int]


@contextmanager
def _padding_side(tokenizer: PreTrainedTokenizerBase, side: str) -> Iterator[None]:
    before = tokenizer.padding_side
    tokenizer.padding_side = side
    try:
        yield
    finally:
        tokenizer.padding_side = before


def _through_eos(tokens: torch.Tensor, eos_token_id: int | None) -> torch.Tensor:
    """Tokens (L,) up to and with the first end-of-sequence token."""
    if eos_token_id is None:
        return tokens
    ends = (tokens == eos_token_id).nonzero()
    return tokens if len(ends) == 0 else tokens[: int(ends[0]) + 1]


def generate_batched(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    queries: list[torch.Tensor],
    *,
    device: torch.device,
    is_encoder_decoder: bool = False,
    length_sampler: LengthSampler | None = None,
    batch_size: int = 4,
    return_prompt: bool = True,
    pad_to_multiple_of: int | None = None,
    remove_padding: bool = True,
    **generation_kwargs: Any,
) -> list[torch.Tensor]:
    """Responses for a list of prompts, each a 1-D tensor of its own length.

    Args:
        model: anything with `generate`; not wrapped for distribution.
        queries: 1-D int64 prompts, none empty.
        length_sampler: drawn once per chunk of `batch_size` prompts to give `max_new_tokens`.
        return_prompt: whether a response starts with its prompt (never for encoder–decoders).
        remove_padding: cut each response after its first end-of-sequence token. With the prompt
            returned, one inside the prompt cuts too, as it did in TRL 0.7.
    """
    outputs: list[torch.Tensor] = []
    side = tokenizer.padding_side if is_encoder_decoder else "left"
    with _padding_side(tokenizer, side):
        for start in range(0, len(queries), batch_size):
            if length_sampler is not None:
                generation_kwargs["max_new_tokens"] = length_sampler()
            chunk = queries[start : start + batch_size]
            masks = [torch.ones_like(query) for query in chunk]
            padded = tokenizer.pad(
                BatchEncoding({"input_ids": chunk, "attention_mask": masks}),
                pad_to_multiple_of=pad_to_multiple_of,
                return_tensors="pt",
            ).to(device)
            generated = model.generate(**padded, **generation_kwargs)
            width = padded["input_ids"].shape[1]
            for query, tokens in zip(chunk, generated, strict=True):
                if not is_encoder_decoder:
                    tokens = tokens[width - (len(query) if return_prompt else 0) :]
                eos = tokenizer.eos_token_id if remove_padding else None
                outputs.append(_through_eos(tokens, eos))
    return outputs


def generate_one(
    model: Any,
    query: torch.Tensor,
    *,
    is_encoder_decoder: bool = False,
    length_sampler: LengthSampler | None = None,
    return_prompt: bool = True,
    **generation_kwargs: Any,
) -> torch.Tensor:
    """Response (1, L) for one 1-D prompt, not cut at the end of sequence.

    Raises:
        ValueError: if the prompt is not 1-D.
    """
    if query.ndim != 1:
        raise ValueError(
            f"query_tensor has {query.ndim} dimensions: give one 1-D tensor or a list of them"
        )
    if length_sampler is not None:
        generation_kwargs["max_new_tokens"] = length_sampler()
    generated = model.generate(input_ids=query[None], **generation_kwargs)
    if return_prompt or is_encoder_decoder:
        return generated
    return generated[:, query.shape[0] :]
