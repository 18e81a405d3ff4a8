"""Drawing answers to the rows of a generation batch, by whichever engine."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import nn
from transformers import PreTrainedTokenizerBase

from fastrl.data.formats import is_conversational
from fastrl.models import door
from fastrl.rollout.completion import Completion, Request
from fastrl.rollout.plan import Plan
from fastrl.rollout.prompts import check_prompts, limits, row_seeds
from fastrl.rollout.sampling import ids_of
from fastrl.train.experience import Drawn, Text
from fastrl.train.online_config import OnlineConfig

RolloutFunction = Callable[[list[Any], Any], Mapping[str, Any]]


class Answering(Protocol):
    """What draws answers: the engine of this process, or vLLM."""

    def answers(self, requests: Sequence[Request]) -> list[tuple[Completion, ...]]:
        """Those to each request, in order."""
        ...


def ends(tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> list[int]:
    """Ids that end an answer: the tokenizer's end of sequence and the generation config's."""
    config = getattr(door.find(model)[0], "generation_config", None)
    own = ids_of(tokenizer.eos_token_id)
    return sorted(own | ids_of(None if config is None else config.eos_token_id))


class InProcess:
    """The rollout engine on the policy itself.

    Args:
        model: what the trainer calls.
        args: its sampling settings; all of them count, before those of the model's own
            `generation_config`.
        tokenizer: of the model.

    Raises:
        ValueError: at construction, for settings that no engine takes, or if nothing ends an answer.
    """

    def __init__(
        self, model: nn.Module, args: OnlineConfig, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._arguments = self._settings(args)
        plan = self._plan()
        if not plan.sampling.eos and not plan.sampling.stop:
            raise ValueError(
                "processing_class: the tokenizer has no eos_token, so no answer would end before "
                "max_completion_length; set tokenizer.eos_token, or "
                "args.generation_kwargs={'eos_token_id': ...}"
            )

    def _settings(self, args: OnlineConfig) -> dict[str, Any]:
        length = args.max_completion_length
        config = door.find(self.model)[0].config.get_text_config()
        table = getattr(config, "max_position_embeddings", None)
        if length is None and table is None:
            raise ValueError(
                "max_completion_length=None leaves the length to the model's positions, but it "
                "has no limit; set max_completion_length"
            )
        return {
            "do_sample": True,
            "max_new_tokens": length,
            "max_length": table if length is None else None,
            "pad_token_id": self._tokenizer.pad_token_id,
            "bos_token_id": self._tokenizer.bos_token_id,
            "eos_token_id": ends(self._tokenizer, self.model) or None,
            "temperature": args.temperature,
            "top_p": args.top_p,
            "top_k": args.top_k,
            "min_p": args.min_p or 0.0,
            "repetition_penalty": args.repetition_penalty,
            "cache_implementation": args.cache_implementation,
            **(args.generation_kwargs or {}),
        }

    def _plan(self) -> Plan:
        return Plan.of(self.model, None, copy.deepcopy(self._arguments), self._tokenizer)

    def requests(
        self, prompts: Sequence[Sequence[int]], room: Sequence[int] | None
    ) -> list[Request]:
        """One for each run of equal prompts; answers of at most `room` tokens each."""
        instance, _ = door.find(self.model)
        runs = [(ids, len(list(same))) for ids, same in itertools.groupby(map(tuple, prompts))]
        different = [ids for ids, _ in runs]
        check_prompts(instance, different)
        most = limits(instance, self._plan().config, different)
        seeds = iter(row_seeds(None, len(prompts), 1))
        rooms = itertools.repeat(None) if room is None else iter(room)
        found = []
        for (ids, count), limit in zip(runs, most, strict=True):
            given = list(itertools.islice(rooms, count))
            found.append(
                Request(
                    ids,
                    tuple(seed for (seed,) in itertools.islice(seeds, count)),
                    tuple(limit if own is None else min(limit, own) for own in given),
                )
            )
        return found

    def answers(self, requests: Sequence[Request]) -> list[tuple[Completion, ...]]:
        """Those to each request, in order."""
        return self._plan().answers(requests)


class Drawing:
    """Rows in, answers out.

    Args:
        trainer: handed to a rollout function.
        tokenizer: of the policy.
        engine: builds requests of prompts, see `InProcess`.
        answering: draws them; the engine itself, or vLLM.
        rollout_func: draws everything by itself instead.
        chat_template_kwargs: for conversations.
    """

    def __init__(
        self,
        trainer: Any,
        tokenizer: PreTrainedTokenizerBase,
        engine: InProcess,
        answering: Answering,
        rollout_func: RolloutFunction | None,
        chat_template_kwargs: Mapping[str, Any],
    ) -> None:
        self._trainer = trainer
        self._tokenizer = tokenizer
        self._engine = engine
        self._answering = answering
        self._rollout_func = rollout_func
        self._chat = dict(chat_template_kwargs)

    def draw(self, prompts: list[Text]) -> Drawn:
        """An answer to each prompt; equal neighbours are computed once."""
        if self._rollout_func is not None:
            return self._rolled_out(prompts)
        ids = self.token_ids(prompts)
        found = self.complete(ids)
        answers = [list(one.token_ids) for one in found]
        known = self._answering is not self._engine
        return Drawn(
            prompts,
            self._texts(prompts, answers),
            ids,
            answers,
            sampled_logp=[one.logp_full for one in found] if known else None,
        )

    def complete(
        self, prompts: Sequence[Sequence[int]], room: Sequence[int] | None = None
    ) -> list[Completion]:
        """One completion of each prompt, of at most `room` tokens."""
        requests = self._engine.requests(prompts, room)
        return [one for several in self._answering.answers(requests) for one in several]

    def token_ids(self, prompts: list[Text]) -> list[list[int]]:
        """Prompts as the model is given them, conversations with their template."""
        runs = [(prompt, len(list(same))) for prompt, same in itertools.groupby(prompts)]
        different = [prompt for prompt, _ in runs]
        if is_conversational({"prompt": prompts[0]}):
            made: Any = self._tokenizer.apply_chat_template(
                different, add_generation_prompt=True, return_dict=True, **self._chat
            )
        else:
            made = self._tokenizer(text=different)
        several = zip(made["input_ids"], runs, strict=True)
        return [list(ids) for ids, (_, count) in several for _ in range(count)]

    def _texts(self, prompts: list[Text], answers: list[list[int]]) -> list[Text]:
        """Answers as reward functions see them: texts, or a message each."""
        texts: list[str] = self._tokenizer.batch_decode(answers, skip_special_tokens=True)
        if not is_conversational({"prompt": prompts[0]}):
            return list(texts)
        return [[{"role": "assistant", "content": text}] for text in texts]

    def _rolled_out(self, prompts: list[Text]) -> Drawn:
        output = dict(self._rollout_func(copy.deepcopy(prompts), self._trainer))  # type: ignore[misc]
        check_rollout(output, len(prompts))
        extra = {key: given for key, given in output.items() if key not in _ROLLED}
        written = extra.pop("env_mask", None)
        answers = [list(map(int, ids)) for ids in output["completion_ids"]]
        return Drawn(
            prompts,
            self._texts(prompts, answers),
            [list(map(int, ids)) for ids in output["prompt_ids"]],
            answers,
            None if written is None else [[bool(x) for x in mask] for mask in written],
            _numbers(output["logprobs"]),
            extra,
        )


_ROLLED = ("prompt_ids", "completion_ids", "logprobs")


def _numbers(logprobs: Any) -> list[list[float]] | None:
    if logprobs is None:
        return None
    return [[float("nan") if x is None else float(x) for x in row] for row in logprobs]


def check_rollout(output: Mapping[str, Any], rows: int) -> None:
    """Refuse what a rollout function returned if it does not describe an answer to each row.

    Raises:
        ValueError: naming the key and the row.
    """
    missing = sorted(set(_ROLLED) - set(output))
    if missing:
        raise ValueError(
            f"rollout_func returned no {', '.join(missing)}; it has to give prompt_ids, "
            "completion_ids and logprobs (None where they are not known)"
        )
    for key in ("prompt_ids", "completion_ids"):
        if len(output[key]) != rows:
            raise ValueError(f"rollout_func: {key} has {len(output[key])} rows for {rows} prompts")
        for row, ids in enumerate(output[key]):
            if not len(ids):
                raise ValueError(f"rollout_func: {key}[{row}] is empty")
    for key in ("logprobs", "env_mask"):
        if output.get(key) is None:
            continue
        if len(output[key]) != rows:
            raise ValueError(f"rollout_func: {key} has {len(output[key])} rows for {rows} prompts")
        for row, (given, ids) in enumerate(zip(output[key], output["completion_ids"], strict=True)):
            if len(given) != len(ids):
                raise ValueError(
                    f"rollout_func: {key}[{row}] has {len(given)} entries for the {len(ids)} "
                    f"tokens of completion_ids[{row}]"
                )
