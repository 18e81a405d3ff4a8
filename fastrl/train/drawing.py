"""Drawing answers to the rows of a generation batch, by whichever engine."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from fastrl.data.formats import is_conversational
from fastrl.models import door
from fastrl.rollout.answerer import Answerer
from fastrl.rollout.completion import Completion, Request
from fastrl.rollout.environments import Environments
from fastrl.rollout.plan import Plan
from fastrl.rollout.prompts import check_prompts, limits, row_seeds
from fastrl.rollout.sampling import Sampling, ids_of, refuse_unknown
from fastrl.rollout.tool_loop import ToolLoop
from fastrl.train.experience import Drawn, Text
from fastrl.train.online_config import OnlineConfig
from fastrl.train.rolled_out import RolloutFunction, rolled_out


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
        ValueError: for settings that no engine takes, or if nothing ends an answer.
    """

    def __init__(
        self, model: nn.Module, args: OnlineConfig, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._arguments = self._settings(args)
        plan = self.plan()
        refuse_unknown(door.find(model)[0], plan.others)
        self.sampling = plan.sampling
        if not self.sampling.eos and not self.sampling.stop:
            raise ValueError(
                "processing_class: the tokenizer has no eos_token, so no answer would end before "
                "max_completion_length; set tokenizer.eos_token, or "
                "args.generation_kwargs={'eos_token_id': ...}"
            )

    def _settings(self, args: OnlineConfig) -> dict[str, Any]:
        length = args.max_completion_length
        table = position_limit(self.model)
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
            # vLLM has its own names for more than that
            **({} if args.use_vllm else args.generation_kwargs or {}),
        }

    def plan(self) -> Plan:
        """The policy as it now is, with these settings."""
        return Plan.of(self.model, None, copy.deepcopy(self._arguments), self._tokenizer)

    def requests(
        self, prompts: Sequence[Sequence[int]], room: Sequence[int] | None
    ) -> list[Request]:
        """One for each run of equal prompts; answers of at most `room` tokens each."""
        if not prompts:
            return []
        instance, _ = door.find(self.model)
        runs = [(ids, len(list(same))) for ids, same in itertools.groupby(map(tuple, prompts))]
        different = [ids for ids, _ in runs]
        check_prompts(instance, different)
        most = limits(instance, self.plan().config, different)
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
        plan = self.plan()
        if not requests and isinstance(plan.served(), str):
            return []  # the model's own generate has nothing to do in step with others
        return plan.answers(requests)


def vllm(trainer: Any, sampling: Sampling) -> Answerer:
    """vLLM as the trainer's arguments have it, in this process or on a server."""
    from fastrl.rollout.vllm_engine import Colocated
    from fastrl.rollout.vllm_server import Server

    args = trainer.args
    kind = Colocated if args.vllm_mode == "colocate" else Server
    rows = args.per_device_train_batch_size * args.steps_per_generation
    return kind(
        trainer.model,
        trainer.accelerator,
        args,
        sampling,
        max_num_seqs=rows * args.vllm_tensor_parallel_size,
        trust_remote_code=args.trust_remote_code,
        generation_kwargs=args.generation_kwargs,
    )


@dataclass(frozen=True)
class DrawnBy:
    """How answers come about where the engine does not simply draw them."""

    tools: tuple[Callable[..., Any], ...] = ()
    rollout_func: RolloutFunction | None = None
    environments: Environments | None = None

    @property
    def has_tools(self) -> bool:
        """Whether answers may call tools, those of environments among them."""
        own = self.environments is not None and bool(self.environments.tools)
        return own or bool(self.tools)

    @staticmethod
    def of(tools: Any, rollout_func: Any, environment_factory: Any) -> DrawnBy:
        """From a trainer's arguments.

        Raises:
            TypeError, ValueError: for what cannot be called, or two ways at once.
        """
        if rollout_func is not None and not callable(rollout_func):
            raise TypeError(f"rollout_func must be a function, got {type(rollout_func).__name__}")
        if rollout_func is not None and (tools or environment_factory is not None):
            raise ValueError(
                "rollout_func draws whole answers by itself, so tools= and environment_factory= "
                "would do nothing; call them in rollout_func, or leave it out"
            )
        tools = tuple(tools or ())
        if environment_factory is None:
            return DrawnBy(tools, rollout_func)
        return DrawnBy(tools, None, Environments(environment_factory, tools))


def position_limit(model: nn.Module) -> int | None:
    """Most tokens of prompt and answer together by the model's configuration, if it says."""
    config = door.find(model)[0].config.get_text_config()
    return getattr(config, "max_position_embeddings", None)


class Drawing:
    """Rows in, answers out.

    Args:
        trainer: an `OnlineTrainer`; handed to a rollout function.
        drawn_by: who else has a part in the answers.
    """

    def __init__(self, trainer: Any, drawn_by: DrawnBy) -> None:
        args = trainer.args
        self._trainer = trainer
        self._tokenizer = trainer.processing_class
        self._rollout_func = drawn_by.rollout_func
        self._environments = drawn_by.environments
        self._chat = dict(args.chat_template_kwargs or {})
        self._engine = InProcess(trainer.model, args, self._tokenizer)
        self._vllm = vllm(trainer, self._engine.sampling) if args.use_vllm else None
        self._synced: tuple[Any, int] = (None, -1)  # run and step whose weights vLLM has
        self._loop = self._tool_loop(drawn_by) if drawn_by.has_tools else None

    def _tool_loop(self, drawn_by: DrawnBy) -> ToolLoop:
        args = self._trainer.args
        room = args.vllm_max_model_length if args.use_vllm else None
        return ToolLoop(
            self._tokenizer,
            drawn_by.tools,
            generate=self.complete,
            max_iterations=args.max_tool_calling_iterations,
            max_completion_length=args.max_completion_length,
            chat_template_kwargs=self._chat,
            max_model_length=room or position_limit(self._trainer.model),
            anyone=self.anyone,
        )

    def draw(self, rows: list[dict[str, Any]]) -> Drawn:
        """An answer to the prompt of each row; what equal neighbours share is computed once."""
        environments = None
        if self._environments is not None:
            environments, conversations = self._environments.open(rows)
            prompts: list[Text] = list(conversations)
        else:
            prompts = _prompts_of(rows)
        with self._awake():
            drawn = self._found(prompts, environments)
        return replace(drawn, environments=environments)

    def _found(self, prompts: list[Text], environments: list[Any] | None) -> Drawn:
        if self._rollout_func is not None:
            return rolled_out(self._rollout_func, prompts, self._trainer, self._texts)
        if self._loop is not None:
            return self._episodes(self._loop, prompts, environments)
        return self._answered(prompts)

    def _answered(self, prompts: list[Text]) -> Drawn:
        ids = self.token_ids(prompts)
        found = self.complete(ids)
        answers = [list(one.token_ids) for one in found]
        return Drawn(
            prompts,
            self._texts(prompts, answers),
            ids,
            answers,
            sampled_logp=None if self._vllm is None else [one.logp_full for one in found],
            stopped=[one.finish == "stop" for one in found],
        )

    def _episodes(self, loop: ToolLoop, prompts: list[Any], environments: Any) -> Drawn:
        found = loop.run(prompts, environments)
        return Drawn(
            prompts,
            [episode.messages for episode in found],
            [episode.prompt_ids for episode in found],
            [episode.completion_ids for episode in found],
            [episode.written for episode in found],
            None if self._vllm is None else [episode.logp for episode in found],
            tool_calls=sum(episode.calls for episode in found),
            tool_failures=sum(episode.failures for episode in found),
        )

    @property
    def ends(self) -> frozenset[int]:
        """Ids that end an answer."""
        return self._engine.sampling.eos

    @property
    def with_tools(self) -> bool:
        """Whether answers may call tools."""
        return self._loop is not None

    def anyone(self, here: bool) -> bool:
        """Whether any process has rows left; all take part in every round."""
        accelerator = self._trainer.accelerator
        if accelerator.num_processes == 1:
            return here
        flags = accelerator.gather(torch.tensor([int(here)], device=accelerator.device))
        return bool(flags.max())

    def complete(
        self, prompts: Sequence[Sequence[int]], room: Sequence[int] | None = None
    ) -> list[Completion]:
        """One completion of each prompt, of at most `room` tokens."""
        other = getattr(self._trainer, "other_answers", None)  # a method of Nash-MD and XPO
        if other is None:
            return self._by_policy(prompts, room)
        own = self._by_policy(prompts[0::2])
        answers = other(self._engine.plan(), self._engine.requests(prompts[1::2], None))
        others = [one for several in answers for one in several]
        return [one for pair in zip(own, others, strict=True) for one in pair]

    def _by_policy(
        self, prompts: Sequence[Sequence[int]], room: Sequence[int] | None = None
    ) -> list[Completion]:
        requests = self._engine.requests(prompts, room)
        if self._vllm is None:
            return [one for answers in self._engine.answers(requests) for one in answers]
        found = [one for answers in self._vllm.answers(requests) for one in answers]
        # Under filters vLLM tells only what it drew with, which is what TRL compares with.
        return [
            one if one.logp_full is not None else replace(one, logp_full=one.logp) for one in found
        ]

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """vLLM, if it draws, with the present weights; given up again if it may sleep."""
        if self._vllm is None:
            yield
            return
        state = self._trainer.state  # another object in another run
        run, step = self._synced
        fresh = state is run and state.global_step == step
        if not fresh or self._trainer.args.vllm_enable_sleep_mode:
            self._vllm.sync(self._trainer.model_wrapped, self._trainer.accelerator)
            self._synced = (state, state.global_step)
        yield
        self._vllm.sleep()

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


def _prompts_of(rows: list[dict[str, Any]]) -> list[Text]:
    """The prompts; a stream's rows are first seen here."""
    for row in rows:
        if not isinstance(row.get("prompt"), str | list):
            found = f"{row['prompt']!r} in" if "prompt" in row else "no column 'prompt', only"
            raise ValueError(
                f"a row of the dataset has {found} {', '.join(row)}; its prompt must be a text or "
                "a list of messages"
            )
    return [row["prompt"] for row in rows]
