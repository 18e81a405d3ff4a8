"""Prompts to responses as classic PPO asks for them: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from fastrl.models import door
from fastrl.rollout.completion import Request
from fastrl.rollout.plan import Plan
from fastrl.rollout.prompts import limits, row_seeds

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

    The engine answers all prompts in one rollout, in evaluation mode; what it cannot run goes to
    `model.generate`, `batch_size` left-padded prompts at a time.

    Args:
        model: anything with `generate`; not wrapped for distribution.
        queries: 1-D int64 prompts, none empty.
        length_sampler: drawn once per chunk of `batch_size` prompts to give `max_new_tokens`.
        return_prompt: whether a response starts with its prompt (never for encoder–decoders).
        remove_padding: cut each response after its first end-of-sequence token. With the prompt
            returned, one inside the prompt cuts too, as it did in TRL 0.7.
    """
    chunks = [queries[start : start + batch_size] for start in range(0, len(queries), batch_size)]
    each = [generation_kwargs] * len(chunks)
    if length_sampler is not None:
        each = [{**generation_kwargs, "max_new_tokens": length_sampler()} for _ in chunks]
    outputs: list[torch.Tensor] | None = None
    if remove_padding and pad_to_multiple_of is None and not is_encoder_decoder:
        outputs = _by_engine(model, tokenizer, chunks, each, device)
    if outputs is None:
        outputs = []
        for chunk, arguments in zip(chunks, each, strict=True):
            outputs += _by_generate(
                model, tokenizer, chunk, device, is_encoder_decoder, pad_to_multiple_of, arguments
            )
    if not (return_prompt or is_encoder_decoder):
        outputs = [row[len(query) :] for row, query in zip(outputs, queries, strict=True)]
    eos = tokenizer.eos_token_id if remove_padding else None
    return [_through_eos(row, eos) for row in outputs]


def _by_engine(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    chunks: list[list[torch.Tensor]],
    arguments: list[dict[str, Any]],
    device: torch.device,
) -> list[torch.Tensor] | None:
    """Prompts with their responses, without padding; None if the engine cannot give them.

    Settings may differ between chunks in nothing but the most tokens.
    """
    try:
        instance, _ = door.find(model)
    except TypeError:
        return None
    requests: list[Request] = []
    for chunk, given in zip(chunks, arguments, strict=True):
        given = dict(given)
        plan = Plan.of(model, given.pop("generation_config", None), given, tokenizer)
        prompts = [tuple(row.tolist()) for row in chunk]
        for ids, limit in zip(prompts, limits(instance, plan.config, prompts), strict=True):
            (seeds,) = row_seeds(None, 1, plan.config.num_return_sequences or 1)
            requests.append(Request(ids, seeds, (limit,) * len(seeds)))
    found = plan.served()
    if isinstance(found, str):
        plan.say(found)
        return None
    return [
        torch.tensor([*request.prompt_ids, *answer.token_ids], device=device)
        for request, several in zip(requests, plan.by_engine(found, requests), strict=True)
        for answer in several
    ]


def _by_generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    chunk: list[torch.Tensor],
    device: torch.device,
    is_encoder_decoder: bool,
    pad_to_multiple_of: int | None,
    arguments: dict[str, Any],
) -> list[torch.Tensor]:
    """One batch through `model.generate`; prompts with responses, padded behind."""
    masks = [torch.ones_like(query) for query in chunk]
    with _padding_side(tokenizer, tokenizer.padding_side if is_encoder_decoder else "left"):
        padded = tokenizer.pad(
            BatchEncoding({"input_ids": chunk, "attention_mask": masks}),
            pad_to_multiple_of=pad_to_multiple_of,
            return_tensors="pt",
        ).to(device)
    generated = model.generate(**padded, **arguments)
    if is_encoder_decoder:
        return list(generated)
    width = padded["input_ids"].shape[1]
    pairs = zip(chunk, generated, strict=True)
    return [tokens[width - len(query) :] for query, tokens in pairs]


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
    made: list[torch.Tensor] | None = None
    if not is_encoder_decoder:
        made = _by_engine(model, None, [[query]], [generation_kwargs], query.device)
    if made is not None and len(made) == 1:
        generated = made[0][None]
    else:
        generated = model.generate(input_ids=query[None], **generation_kwargs)
    if return_prompt or is_encoder_decoder:
        return generated
    return generated[:, query.shape[0] :]
