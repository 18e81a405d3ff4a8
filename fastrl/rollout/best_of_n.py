"""The best of several answers to a prompt, by a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, set_seed

from fastrl.models import PreTrainedModelWrapper, door, trial
from fastrl.rollout.completion import Request
from fastrl.rollout.counts import require_count
from fastrl.rollout.plan import Plan
from fastrl.rollout.prompts import check_prompts, limits, row_seeds

Queries = Sequence[int] | torch.Tensor | Sequence[torch.Tensor] | Sequence[Sequence[int]]


def _rows(tokenized_query: Queries) -> list[tuple[int, ...]]:
    """One prompt or several, as ids."""
    given: Any = tokenized_query
    if isinstance(given, torch.Tensor):
        if given.ndim != 1:
            raise ValueError(
                f"tokenized_query of shape {tuple(given.shape)}: give one 1-D tensor, or a list of "
                "them: list(tokenized_query)"
            )
        given = [given]
    elif not isinstance(given, list | tuple) or len(given) == 0:
        raise ValueError(
            "tokenized_query must be a 1-D tensor, a list of ids, or a list of such that is not "
            f"empty, got {given!r:.80}"
        )
    elif isinstance(given[0], int):
        given = [given]
    found = []
    for i, row in enumerate(given):
        ids = torch.as_tensor(row).reshape(-1)
        if len(ids) and (ids.is_floating_point() or ids.dtype == torch.bool):
            raise ValueError(f"tokenized_query[{i}] must hold token ids, got {ids.dtype}")
        found.append(tuple(ids.tolist()))
    return found


class BestOfNSampler:
    """Draws `sample_size` answers to each query and keeps those that score highest.

    Interface of TRL 0.7. The engine answers all queries in one rollout, each prompt fed once, in
    evaluation mode; what it cannot run goes to `model.generate`.

    Args:
        model: a value-head model.
        tokenizer: decodes prompt and answer, which are scored together.
        queries_to_scores: texts to as many numbers.
        length_sampler: called once a query, gives the most new tokens.
        sample_size: answers to a query.
        seed: set for torch, numpy and random when this is made.
        n_candidates: how many of the best to return, the best first.
        generation_config: how to draw them; None: the model's own way.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self,
        model: PreTrainedModelWrapper,
        tokenizer: PreTrainedTokenizerBase,
        queries_to_scores: Callable[[list[str]], Any],
        length_sampler: Callable[[], int],
        sample_size: int = 4,
        seed: int | None = None,
        n_candidates: int = 1,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ValueError(f"tokenizer must be a tokenizer, got {type(tokenizer).__name__}")
        if not isinstance(model, PreTrainedModelWrapper):
            raise ValueError(
                f"model must be a value-head model, got {type(model).__name__}: wrap it by "
                "AutoModelForCausalLMWithValueHead.from_pretrained(model)"
            )
        for name, given in (
            ("queries_to_scores", queries_to_scores),
            ("length_sampler", length_sampler),
        ):
            if not callable(given):
                raise ValueError(f"{name} must be callable, got {type(given).__name__}")
        self.sample_size = require_count("sample_size", sample_size)
        self.n_candidates = require_count("n_candidates", n_candidates)
        if n_candidates > sample_size:
            raise ValueError(f"n_candidates={n_candidates} is more than sample_size={sample_size}")
        self.model = model
        self.tokenizer = tokenizer
        self.queries_to_scores = queries_to_scores
        self.length_sampler = length_sampler
        self.gen_config = generation_config
        if seed is not None:
            set_seed(seed)

    def generate(
        self,
        tokenized_query: Queries,
        skip_special_tokens: bool = True,
        device: str | int | torch.device | None = None,
        **generation_kwargs: Any,
    ) -> list[list[str]]:
        """The best answers to one or several prompts.

        Args:
            tokenized_query: ids as a 1-D tensor or a list, or a list of several such.
            skip_special_tokens: leave them out of the texts.
            device: where the model is; None: wherever that may be.
            generation_kwargs: for `model.generate`, before `generation_config`.

        Returns:
            for each query the `n_candidates` texts (prompt and answer) of highest score.

        Raises:
            ValueError: for a query that is not ids of the model's, another device than the
                model's, or scores that are not one number for each text.
        """
        queries = _rows(tokenized_query)
        inner = self.model.pretrained_model
        check_prompts(inner, queries)
        if device is not None and torch.device(device).type != inner.device.type:
            raise ValueError(
                f"device={device!r}, but the model is on {inner.device}: move it there"
            )
        plans = [self._plan(generation_kwargs) for _ in queries]
        answers = self._answers(plans, queries)
        return [self._best(i, rows, skip_special_tokens) for i, rows in enumerate(answers)]

    def _plan(self, generation_kwargs: dict[str, Any]) -> Plan:
        if "max_new_tokens" in generation_kwargs:
            raise ValueError("max_new_tokens is what length_sampler gives: leave it out")
        given = {**generation_kwargs, "max_new_tokens": self.length_sampler()}
        return Plan.of(self.model, self.gen_config, given, self.tokenizer)

    def _answers(self, plans: list[Plan], queries: list[tuple[int, ...]]) -> list[list[list[int]]]:
        """The samples of each query, prompt and answer (of an encoder-decoder the answer)."""
        found = plans[0].served()
        pad, eos = plans[0].config.pad_token_id, plans[0].sampling.eos
        if pad is not None and pad not in eos and any(pad in ids for ids in queries):
            found = "a query holds padding"
        if isinstance(found, str):
            plans[0].say(found)
            pairs = zip(plans, queries, strict=True)
            return [self._by_generate(plan, ids) for plan, ids in pairs]
        several = self.sample_size * (plans[0].config.num_return_sequences or 1)
        requests = []
        for plan, ids in zip(plans, queries, strict=True):
            (limit,) = limits(door.find(self.model)[0], plan.config, [ids])
            (seeds,) = row_seeds(None, 1, several)
            requests.append(Request(ids, seeds, (limit,) * several))
        return [
            [[*ids, *answer.token_ids] for answer in answers]
            for ids, answers in zip(queries, plans[0].by_engine(found, requests), strict=True)
        ]

    def _by_generate(self, plan: Plan, ids: tuple[int, ...]) -> list[list[int]]:
        instance, _ = door.find(self.model)
        rows = torch.tensor([ids] * self.sample_size, device=instance.device)
        spelt = {"tokenizer": self.tokenizer} if plan.sampling.stop else {}
        seed = int(torch.randint(2**62, ()))
        with trial.undisturbed(instance), torch.no_grad():
            torch.manual_seed(seed)
            made = self.model.generate(rows, generation_config=plan.config, **plan.others, **spelt)
        return getattr(made, "sequences", made).tolist()

    def _best(self, query: int, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=skip_special_tokens)
        scores = torch.as_tensor(self.queries_to_scores(texts)).detach().cpu()
        if scores.shape != (len(texts),):
            raise ValueError(
                f"queries_to_scores gave scores of shape {tuple(scores.shape)} to {len(texts)} "
                "texts: give a list of one number each"
            )
        if scores.isnan().any():
            raise ValueError(f"queries_to_scores gave NaN to an answer to query {query}")
        return [texts[i] for i in scores.topk(self.n_candidates).indices]
