"""What a rollout is asked for and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Finish = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Completion:
    """One answer to a prompt."""

    token_ids: tuple[int, ...]  # through the end-of-sequence token, if there is one
    # Per token: log-probability under the distribution it was drawn from, after every filter (0
    # where it was not drawn but the best was taken); None where `model.generate` cannot tell.
    logp: tuple[float, ...] | None
    # Per token: under softmax(logits / temperature), which is what re-scoring gives; at temperature
    # 0 taken at temperature 1. None where `model.generate` cannot tell.
    logp_full: tuple[float, ...] | None
    finish: Finish  # an end-of-sequence token; a stop string; no more tokens were allowed
    text: str | None = None  # decoded without special tokens, where a tokenizer is at hand


@dataclass(frozen=True)
class Rollout:
    """A prompt and its answers."""

    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]


@dataclass(frozen=True)
class Request:
    """A prompt as token ids, with what each of its answers is drawn with."""

    prompt_ids: tuple[int, ...]
    seeds: tuple[int, ...]  # one per answer: the same seed, prompt and model give the same answer
    limits: tuple[int, ...]  # one per answer: most tokens (>= 1)
