"""The same rollout through `model.generate`, for what the engine does not serve."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import GenerationConfig

from fastrl.models import door, logprobs, trial
from fastrl.rollout.completion import Completion, Finish, Request
from fastrl.rollout.sampling import Sampling
from fastrl.types import Tokens

_ROWS = 16  # answers a call


@dataclass(frozen=True)
class Fallback:
    """A model's own `generate`, and what it is called with."""

    model: nn.Module
    config: GenerationConfig  # resolved
    arguments: dict[str, Any]  # further arguments of `generate`
    sampling: Sampling
    ends: Callable[[list[int]], bool] | None  # see `Engine`
    plain: bool  # nothing but the logits and the temperature decides

    def run(self, requests: Sequence[Request]) -> list[tuple[Completion, ...]]:
        """The answers to each request, in order; random numbers are torch's, seeded by the first.

        Log-probabilities under the filtered distribution are None where there is a filter, and both
        are None of an encoder-decoder.
        """
        rows = [(i, j) for i, request in enumerate(requests) for j in range(len(request.seeds))]
        instance, _ = door.find(self.model)
        done: list[list[Completion]] = [[] for _ in requests]
        with trial.undisturbed(instance), torch.no_grad():
            torch.manual_seed(requests[0].seeds[0])
            for start in range(0, len(rows), _ROWS):
                chunk = rows[start : start + _ROWS]
                prompts = [requests[i].prompt_ids for i, _ in chunk]
                limits = [requests[i].limits[j] for i, j in chunk]
                answers = [
                    self._end(ids, limit)
                    for ids, limit in zip(self._generate(prompts, limits), limits, strict=True)
                ]
                scored = self._scored(instance, prompts, [ids for ids, _ in answers])
                for (i, _), (ids, finish), logp in zip(chunk, answers, scored, strict=True):
                    done[i].append(Completion(tuple(ids), self._drawn(logp), logp, finish))
        return [tuple(answers) for answers in done]

    def _speaker(self) -> Any:
        """Whose `generate` it is."""
        return extract_model_from_parallel(self.model)

    def _generate(self, prompts: list[tuple[int, ...]], limits: list[int]) -> Iterator[list[int]]:
        """What follows each prompt, with whatever the model pads by."""
        encoder = bool(getattr(door.find(self.model)[0].config, "is_encoder_decoder", False))
        config = copy.deepcopy(self.config)
        config.max_new_tokens = max(limits)
        width = max(map(len, prompts))
        fills = [i for i in (config.pad_token_id, *sorted(self.sampling.eos)) if i is not None]
        ids = torch.full((len(prompts), width), (fills or [0])[0])
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            place = slice(0, len(prompt)) if encoder else slice(width - len(prompt), width)
            ids[row, place] = torch.tensor(prompt)
            mask[row, place] = 1
        device = door.find(self.model)[0].device
        given = {"attention_mask": mask.to(device), "generation_config": config, **self.arguments}
        made = self._speaker().generate(ids.to(device), **given)
        made = getattr(made, "sequences", made)
        yield from (made[:, 1:] if encoder else made[:, width:]).tolist()

    def _end(self, ids: list[int], limit: int) -> tuple[list[int], Finish]:
        """The answer through what ended it."""
        for count, token in enumerate(ids[:limit], 1):
            if token in self.sampling.eos:
                return ids[:count], "eos"
            if self.ends is not None and self.ends(ids[:count]):
                return ids[:count], "stop"
        return ids[:limit], "length"

    def _scored(
        self, instance: Any, prompts: list[tuple[int, ...]], answers: list[list[int]]
    ) -> Sequence[tuple[float, ...] | None]:
        """Log-probabilities of the answers' tokens under softmax(logits / temperature)."""
        if getattr(instance.config, "is_encoder_decoder", False):
            return [None] * len(answers)
        rows = [[*prompt, *ids] for prompt, ids in zip(prompts, answers, strict=True)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=instance.device)
        first = [len(prompt) for prompt in prompts]
        tokens = Tokens(ids, [0] * len(rows), [len(row) for row in rows], first)
        logp = logprobs(self.model, tokens, self.sampling.temperature or 1.0).logp.tolist()
        return [
            tuple(line[start - 1 : len(row) - 1])
            for line, start, row in zip(logp, first, rows, strict=True)
        ]

    def _drawn(self, logp: tuple[float, ...] | None) -> tuple[float, ...] | None:
        """What the tokens were drawn with, where that can be told."""
        if logp is None or not self.plain:
            return None
        return tuple(0.0 for _ in logp) if self.sampling.temperature == 0 else logp
