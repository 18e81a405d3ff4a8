"""`fastrl.rollout.generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from fastrl.legacy import warn_once
from fastrl.models import door
from fastrl.rollout.completion import Request, Rollout
from fastrl.rollout.plan import Plan
from fastrl.rollout.prompts import Prompt, check_prompts, limits, row_seeds, token_ids
from fastrl.rollout.sampling import ids_of


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    num_return_sequences: int = 1,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop: str | Sequence[str] | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    seed: int | Sequence[int] | None = None,
    max_rows: int | None = None,
    generation_config: GenerationConfig | None = None,
    **others: Any,
) -> list[Rollout]:
    """Draw answers to prompts, in evaluation mode and without gradients; a `Rollout` a prompt.

    What is not given is taken from `generation_config`, then from the model's own. Tokens are drawn
    unless `temperature` is 0, and from all of them unless a filter is set somewhere.

    Args:
        model: a causal language model, bare or wrapped.
        prompts: texts, conversations, or token ids.
        num_return_sequences, max_new_tokens: answers to a prompt, and most tokens of each.
        temperature, top_k, top_p, min_p: see `fastrl.ops.sample`.
        repetition_penalty: see `fastrl.ops.penalise`.
        stop: an answer ends with the token that completes one of these strings.
        eos_token_id: ends an answer; by default the tokenizer's and the generation config's; -1
            for none.
        seed: one for all, or one per prompt, which fixes its answers whatever the other prompts;
            None draws one from torch's generator.
        max_rows: answers decoded together.
        others: more for `model.generate`, which also serves models that the engine cannot run.

    Raises:
        ValueError: for a wrong prompt or setting, and if nothing ends an answer.
    """
    given = {
        "do_sample": temperature != 0,
        "temperature": temperature or None,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop_strings": stop,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": eos_token_id,
        **others,
    }
    plan = _plan(model, tokenizer, generation_config, given)
    ids = [token_ids(tokenizer, prompt) for prompt in prompts]
    requests = _requests(plan, ids, num_return_sequences, seed)
    return [
        Rollout(prompt, tuple(replace(a, text=_text(tokenizer, a.token_ids)) for a in answers))
        for prompt, answers in zip(ids, plan.answers(requests, max_rows), strict=True)
    ]


def _plan(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    generation_config: GenerationConfig | None,
    given: dict[str, Any],
) -> Plan:
    """With our defaults: no top-k unless it is set, every known end, no default length."""
    own = door.find(model)[0].generation_config
    configs = [config for config in (generation_config, own) if config is not None]
    if given["top_k"] is None:
        given["top_k"] = next((c.top_k for c in configs if c.top_k is not None), 0)
    if given["eos_token_id"] is None:
        given["eos_token_id"] = _known_ends(tokenizer, configs) or -1
    if isinstance(given["stop_strings"], Sequence) and not isinstance(given["stop_strings"], str):
        given["stop_strings"] = list(given["stop_strings"])
    lengths = [given["max_new_tokens"], *(c.max_new_tokens for c in configs)]
    if all(length is None for length in (*lengths, *(c.max_length for c in configs))):
        raise ValueError("max_new_tokens is given neither here nor in a generation config")
    return Plan.of(model, generation_config, given, tokenizer)


def _requests(
    plan: Plan, prompts: list[tuple[int, ...]], each: int, seed: int | Sequence[int] | None
) -> list[Request]:
    """The prompts, checked, with seeds and limits of their answers."""
    if each < 1:
        raise ValueError(f"num_return_sequences must be at least 1, not {each}")
    instance, _ = door.find(plan.model)
    check_prompts(instance, prompts)
    several = row_seeds(seed, len(prompts), each)
    most = limits(instance, plan.config, prompts)
    return [
        Request(ids, seeds, (limit,) * each)
        for ids, seeds, limit in zip(prompts, several, most, strict=True)
    ]


def _text(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    text: Any = tokenizer.decode(list(ids), skip_special_tokens=True)
    return text


def _known_ends(tokenizer: PreTrainedTokenizerBase, configs: list[GenerationConfig]) -> list[int]:
    """The end-of-sequence ids of the tokenizer and the configurations."""
    several = (ids_of(config.eos_token_id) for config in configs)
    found = sorted(ids_of(tokenizer.eos_token_id).union(*several))
    if not found:
        warn_once(
            "neither tokenizer nor model names an end-of-sequence token, so answers run to "
            "max_new_tokens: give eos_token_id= or stop="
        )
    return found
