"""Prompts as token ids, checked, with the seeds of their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from fastrl.legacy import warn_once
from fastrl.models.embeddings import position_limit, vocabulary_size

Prompt = str | Sequence[int] | torch.Tensor | list[dict[str, Any]]

_MASK64 = (1 << 64) - 1


def _mixed(seed: int, number: int) -> int:
    """A seed in [0, 2^63) for one of several: SplitMix64 (Steele et al., OOPSLA 2014)."""
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return (z ^ (z >> 31)) >> 1


def row_seeds(seed: int | Sequence[int] | None, prompts: int, each: int) -> list[tuple[int, ...]]:
    """Seeds of `each` answers to every prompt.

    Args:
        seed: one for all prompts; or one per prompt, which makes its answers independent of the
            other prompts; None draws one from torch's generator.

    Raises:
        ValueError: the number of seeds is not that of the prompts.
    """
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    if isinstance(seed, int):
        of_prompts = [_mixed(seed, i) for i in range(prompts)]
    elif len(seed) == prompts:
        of_prompts = [int(s) for s in seed]
    else:
        raise ValueError(f"seed has {len(seed)} entries for {prompts} prompts: give one a prompt")
    return [tuple(_mixed(s, j) for j in range(each)) for s in of_prompts]


def token_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[int, ...]:
    """The ids of a text, a conversation (asking for its next turn), or ids as they are."""
    if isinstance(prompt, str):
        return tuple(tokenizer(prompt)["input_ids"])
    given: list[Any] = prompt.tolist() if isinstance(prompt, torch.Tensor) else list(prompt)
    if given and isinstance(given[0], dict):
        made: Any = tokenizer.apply_chat_template(
            given, add_generation_prompt=True, return_dict=True
        )
        return tuple(made["input_ids"])
    return tuple(int(i) for i in given)


def check_prompts(instance: Any, prompts: Sequence[Sequence[int]]) -> None:
    """Refuse prompts that the model cannot take.

    Raises:
        ValueError: naming the prompt, for one that is empty, holds what is no id of the model's, or
            leaves no position for an answer.
    """
    if not len(prompts):
        raise ValueError("prompts is empty: give at least one prompt")
    vocabulary = vocabulary_size(instance)
    longest = getattr(instance.config, "max_position_embeddings", None)
    for i, ids in enumerate(prompts):
        if not len(ids):
            raise ValueError(f"prompts[{i}] is empty: a model needs a token to begin with")
        if longest is not None and len(ids) >= longest:
            raise ValueError(
                f"prompts[{i}] has {len(ids)} tokens, and the model has {longest} positions for "
                "prompt and answer: shorten it"
            )
        wrong = [x for x in ids if x < 0 or (vocabulary is not None and x >= vocabulary)]
        if wrong:
            raise ValueError(
                f"prompts[{i}] holds token {wrong[0]}, outside the model's vocabulary of "
                f"{vocabulary}: was it made by the model's own tokenizer?"
            )


def limits(instance: Any, config: GenerationConfig, prompts: Sequence[Sequence[int]]) -> list[int]:
    """Most new tokens for each prompt, by a resolved configuration; a position table cuts them.

    Raises:
        ValueError: if none is left for some prompt.
    """
    table = position_limit(instance)
    found = []
    for i, ids in enumerate(prompts):
        limit = config.max_new_tokens
        if limit is None:
            limit = config.max_length - len(ids)
        if limit < 1:
            raise ValueError(
                f"prompts[{i}] of {len(ids)} tokens is left max_new_tokens={limit}: at least 1 is "
                "needed"
            )
        if table is not None and len(ids) + limit > table:
            warn_once(
                f"an answer ends where the model's {table} positions do, before max_new_tokens"
            )
            limit = table - len(ids)
        found.append(int(limit))
    return found
