"""Answers in several rounds: the model writes, tools answer, the model goes on.

Tokens that were drawn are never made anew from text: what stands between two rounds is taken from
the chat template, as the difference of an exchange without and with the tools' messages.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastrl.data.chat import render, tokenizer_of
from fastrl.data.templates import is_chat_template_prefix_preserving, supports_tool_calling
from fastrl.data.tokenize import Encoder
from fastrl.data.training_template import get_training_chat_template
from fastrl.rewards.event_loop import EventLoop
from fastrl.rollout.completion import Completion
from fastrl.rollout.environments import joined
from fastrl.rollout.messages import MessageReader
from fastrl.rollout.tools import Message, Toolbox, answer_calls, toolbox

Generate = Callable[[list[tuple[int, ...]], list[int]], list[Completion]]
_USER: Message = {"role": "user", "content": "hi"}
_SHOWN = 300  # characters of a text in an error


@dataclass(frozen=True)
class Episode:
    """A prompt, and all that followed until the model called no tool or ran out of room."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]  # what the model wrote and the tools' results, as templated
    written: tuple[bool, ...]  # True where the model wrote the token (TRL's tool_mask)
    # Log-probability under softmax(logits / temperature), NaN on tokens the model did not write;
    # None where the generator cannot tell.
    logp: tuple[float, ...] | None
    messages: list[Message]  # the completion as messages of the assistant and of tools, in turn
    calls: int
    failures: int  # calls of no tool there is, with wrong arguments, or that raised


@dataclass
class _Row:
    """An episode under way."""

    prompt_ids: tuple[int, ...]
    tools: Toolbox
    ids: list[int] = field(default_factory=list)
    written: list[bool] = field(default_factory=list)
    logp: list[float] | None = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    pending: list[dict[str, Any]] = field(default_factory=list)  # calls not yet answered
    calls: int = 0
    failures: int = 0

    def append(self, ids: Sequence[int], written: bool, logp: Sequence[float] | None) -> None:
        self.ids += ids
        self.written += [written] * len(ids)
        self.logp = None if self.logp is None or logp is None else [*self.logp, *logp]

    def episode(self) -> Episode:
        return Episode(
            prompt_ids=self.prompt_ids,
            completion_ids=tuple(self.ids),
            written=tuple(self.written),
            logp=None if self.logp is None else tuple(self.logp),
            messages=self.messages,
            calls=self.calls,
            failures=self.failures,
        )


class ToolLoop:
    """Completions of conversations whose model may call tools.

    A row goes on while its last message calls tools, its tools' results fit and rounds are left.
    The results count towards `max_completion_length`. Where they do not fit they are left out, and
    the episode ends with the message that asked for them; so it does when rounds run out, with the
    calls unanswered.

    Args:
        tokenizer: tokenizer or processor. Its chat template prints tools, calls and results, and
            its `response_template` says how a call is read; for Qwen2.5, Qwen3, Qwen3.5, Gemma 4
            and models with their formats transformers knows it. A template that prints earlier
            turns otherwise than they were written is replaced by `get_training_chat_template`'s.
        tools: functions that every row may call (`fastrl.rollout.tools.toolbox` says which).
        generate: draws a completion for each of the prompts (token ids), of at most as many tokens
            as its limit (>= 1).
        max_iterations: most rounds of calls in an episode; None: no bound.
        max_completion_length: most tokens of an episode after its prompt; None: as many as
            `max_model_length` allows.
        chat_template_kwargs: for the chat template.
        max_model_length: most tokens of prompt and completion together; results must leave room
            for one more token.
        anyone: given whether this process has work left, says whether any has. Give it where
            every process must call `generate` equally often; it is then called with empty lists
            too.

    Attributes:
        chat_template: the one that is used, where it is not the tokenizer's own; else None.

    Raises:
        TypeError: a tool that cannot be called.
        ValueError: a tool that cannot be described, bounds that cannot be, a chat template that
            prints no tools, a format of calls that is not known.
    """

    def __init__(
        self,
        tokenizer: Any,
        tools: Sequence[Callable[..., Any]],
        *,
        generate: Generate,
        max_iterations: int | None,
        max_completion_length: int | None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_model_length: int | None = None,
        anyone: Callable[[bool], bool] = bool,
    ) -> None:
        _check_bounds(max_iterations, max_completion_length, max_model_length)
        self._tools = toolbox(tools)
        self._processing_class = tokenizer
        self._tokenizer = tokenizer_of(tokenizer)
        self._generate = generate
        self._max_iterations = max_iterations
        self._max_completion = math.inf if max_completion_length is None else max_completion_length
        self._max_model = math.inf if max_model_length is None else max_model_length
        self._anyone = anyone
        self.chat_template = _chat_template(tokenizer)
        self._options = {**(chat_template_kwargs or {}), "chat_template": self.chat_template}
        self._reader = MessageReader(tokenizer, **self._options)
        self._encoder = Encoder(tokenizer)
        self._loop = EventLoop()
        self._of_kinds: dict[type, Toolbox] = {}
        self._added = set(self._tokenizer.get_added_vocab().values())
        self._no_arguments: Any = {}
        result = {"role": "tool", "name": "look_up", "content": "nothing"}
        try:
            self._joints([[result]], [None])
        except TypeError:  # some templates want the arguments as text
            self._no_arguments = "{}"
            self._joints([[result]], [None])

    def run(
        self,
        conversations: Sequence[list[Message]],
        environments: Sequence[Any] | None = None,
    ) -> list[Episode]:
        """One episode for each conversation. All rows that are open are drawn for at once.

        Args:
            conversations: prompts, each a list of messages.
            environments: for each its own, whose public methods are tools beside the others; they
                have been reset (`Environments.open`).

        Raises:
            TypeError: a prompt that is no conversation.
            ValueError: a prompt that leaves no room, or a template whose text for a tool's result
                does not begin as it does without: it is shown.
        """
        rows = self._rows(conversations, environments)
        writing = rows
        rounds = itertools.count() if self._max_iterations is None else range(self._max_iterations)
        self._write(writing)
        for _ in rounds:
            calling = [row for row in writing if row.pending]
            if not self._anyone(bool(calling)):
                break
            writing = [row for row in self._answer(calling) if self._room(row) > 0]
            if self._anyone(bool(writing)):
                self._write(writing)
        return [row.episode() for row in rows]

    def _rows(
        self, conversations: Sequence[list[Message]], environments: Sequence[Any] | None
    ) -> list[_Row]:
        for i, messages in enumerate(conversations):
            if not isinstance(messages, list) or not messages or isinstance(messages[0], str):
                raise TypeError(
                    f"conversations[{i}] is {messages!r}: with tools a prompt is a list of "
                    "messages, [{'role': 'user', 'content': ...}]"
                )
        boxes = [self._tools] * len(conversations)
        if environments is not None:
            if len(environments) != len(conversations):
                raise ValueError(
                    f"environments has {len(environments)} entries for {len(conversations)} "
                    "conversations: give one to each"
                )
            boxes = [joined(self._tools, e, self._of_kinds) for e in environments]
        arguments = [{"tools": box.schemas, **self._options} for box in boxes]
        ids = self._encoder.chats(
            list(conversations), arguments, add_generation_prompt=True, repeated=True
        )
        rows = [_Row(tuple(p), box) for p, box in zip(ids, boxes, strict=True)]
        for i, row in enumerate(rows):
            if self._room(row) < 1:
                raise ValueError(
                    f"conversations[{i}] has {len(row.prompt_ids)} tokens, and max_model_length "
                    f"is {self._max_model}: shorten it"
                )
        return rows

    def _room(self, row: _Row) -> int:
        """How many tokens the row may still get."""
        length = len(row.ids)
        room = min(self._max_completion - length, self._max_model - len(row.prompt_ids) - length)
        return int(room)

    def _write(self, rows: list[_Row]) -> None:
        """Let the model write a message in each row."""
        prefixes = [(*row.prompt_ids, *row.ids) for row in rows]
        limits = [self._room(row) for row in rows]
        completions = self._generate(prefixes, limits)
        for row, prefix, limit, completion in zip(rows, prefixes, limits, completions, strict=True):
            ids = completion.token_ids
            if len(ids) > limit:
                raise ValueError(f"generate gave {len(ids)} tokens where {limit} was the limit")
            row.append(ids, True, completion.logp_full)
            message = self._reader.read(ids, prefix, row.tools.schemas)
            row.messages.append(message)
            row.pending = list(message.get("tool_calls") or [])

    def _answer(self, rows: list[_Row]) -> list[_Row]:
        """Call what the rows ask for; those whose results fit have them now and come back."""
        calls = [(row.tools, call) for row in rows for call in row.pending]
        answers = iter(answer_calls(calls, self._loop))
        results = []
        for row in rows:
            of_row = list(itertools.islice(answers, len(row.pending)))
            row.calls += len(of_row)
            row.failures += sum(failed for _, failed in of_row)
            row.pending = []
            results.append([message for message, _ in of_row])
        joints = self._joints(results, [row.ids[-1] for row in rows])
        fitting = []
        for row, messages, ids in zip(rows, results, joints, strict=True):
            total = len(row.prompt_ids) + len(row.ids) + len(ids)
            if len(ids) > self._max_completion - len(row.ids) or total >= self._max_model:
                continue
            row.append(ids, False, [math.nan] * len(ids))
            row.messages += messages
            fitting.append(row)
        return fitting

    def _joints(
        self, results: Sequence[Sequence[Message]], last: Sequence[int | None]
    ) -> list[list[int]]:
        """The ids from the end of a message that calls tools to the beginning of the next.

        Args:
            results: the tools' messages, of each row.
            last: the token that each row's message ends with.
        """
        if not results:
            return []
        without = [[_USER, self._asking(messages)] for messages in results]
        through = [[*talk, *messages] for talk, messages in zip(without, results, strict=True)]
        befores = render(without, self._processing_class, **self._options)
        afters = render(
            through, self._processing_class, add_generation_prompt=True, **self._options
        )
        ids = self._tokenizer([*befores, *afters], add_special_tokens=False)["input_ids"]
        joints = []
        for row, end in enumerate(last):
            stem, whole = ids[row], ids[len(befores) + row]
            stem = stem[: self._end_of_turn(stem, end)]
            if whole[: len(stem)] != stem:
                raise ValueError(
                    "The chat template prints a call of a tool otherwise when the tool's result "
                    "follows, so that what lies between cannot be told. Without:\n"
                    f"{befores[row][-_SHOWN:]}\nWith:\n{afters[row][-_SHOWN:]}\nSet a template "
                    "that keeps earlier turns as they are: tokenizer.chat_template = ..."
                )
            joints.append(whole[len(stem) :])
        return joints

    def _asking(self, results: Sequence[Message]) -> Message:
        """A message that calls the tools whose results these are, without arguments."""
        calls = [
            {
                "type": "function",
                "function": {"name": result["name"], "arguments": self._no_arguments},
            }
            for result in results
        ]
        return {"role": "assistant", "content": "", "tool_calls": calls}

    def _end_of_turn(self, ids: list[int], last: int | None) -> int:
        """Where a turn that ends with the token `last` ends in a template's text.

        Some templates print more behind it (a line break) that the model never writes. A token that
        the text does not have, or an ordinary one, says nothing: then it is the end-of-sequence
        token, and without one the whole text.
        """
        for token in (last if last in self._added else None, self._tokenizer.eos_token_id):
            if token in ids:
                return len(ids) - ids[::-1].index(token)
        return len(ids)


def _check_bounds(iterations: int | None, completion: int | None, model: int | None) -> None:
    if iterations is not None and iterations < 0:
        raise ValueError(f"max_iterations is {iterations}: give 0 or more, or None for no bound")
    for name, bound in (("max_completion_length", completion), ("max_model_length", model)):
        if bound is not None and bound < 1:
            raise ValueError(f"{name} is {bound}: give at least 1")
    if completion is None and model is None:
        raise ValueError(
            "Neither max_completion_length nor max_model_length is given, so nothing would end an "
            "episode: give one"
        )


def _chat_template(processing_class: Any) -> str | None:
    """A template that keeps earlier turns as they were, where the tokenizer's own does not."""
    if not supports_tool_calling(processing_class):
        raise ValueError(
            "The tokenizer's chat template does not print calls of tools and their results: set "
            "one that does, tokenizer.chat_template = ..."
        )
    if is_chat_template_prefix_preserving(processing_class):
        return None
    return get_training_chat_template(processing_class)
