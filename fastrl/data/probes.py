"""Conversations that a chat template is tried on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastrl.data.chat import Message, Tool
from fastrl.data.templates import supports_reasoning_field, supports_tool_calling


@dataclass(frozen=True)
class Probe:
    """A conversation, its tools, and the words that no rendering may lose."""

    messages: Sequence[Message]
    tools: list[Tool] = field(default_factory=list)
    kept: tuple[str, ...] = ()

    @property
    def with_tools(self) -> bool:
        """Whether a tool answers."""
        return any(message["role"] == "tool" for message in self.messages)

    @property
    def printed(self) -> list[str]:
        """What a template that renders this at all prints of it."""
        contents = [m["content"] for m in self.messages]
        texts = [c if isinstance(c, str) else c[0]["text"] for c in contents]
        return [text.split("</think>")[-1].strip() for text in texts]


_SYSTEM: Message = {"role": "system", "content": "Zorvex briefing."}
_TOOL: Tool = {
    "type": "function",
    "function": {
        "name": "quintle",
        "description": "Measures a plimth.",
        "parameters": {
            "type": "object",
            "properties": {"plimth": {"type": "string", "description": "What to measure."}},
            "required": ["plimth"],
        },
    },
}


def _user(k: int) -> Message:
    return {"role": "user", "content": f"Does vorpid {k} glimmer?"}


def _assistant(k: int, **more: Any) -> Message:
    return {"role": "assistant", "content": f"Drabline {k} it does.", **more}


def _thinking(k: int) -> Message:
    return {
        "role": "assistant",
        "content": f"<think>\nMulvane {k} says so.\n</think>\n\nDrabline {k} it does.",
    }


def _call(arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "quintle", "arguments": arguments}}


def _result(k: int) -> Message:
    return {"role": "tool", "name": "quintle", "content": f"Fennock {k}"}


def _plain() -> Iterator[Probe]:
    for start in ([], [_SYSTEM]):
        for turns in (1, 2, 3):
            talk = [m for k in range(turns) for m in (_user(k), _assistant(k))]
            yield Probe([*start, *talk])
            yield Probe([*start, *talk, _user(turns)])
    blocks = [
        {**m, "content": [{"type": "text", "text": m["content"]}]}
        for m in (_user(0), _assistant(0), _user(1), _assistant(1))
    ]
    yield Probe(blocks)


def _reasoned(processing_class: Any) -> Iterator[Probe]:
    """Reasoning within the content, and in a field of its own where the template reads that."""
    for turns in (1, 2, 3):
        kept = tuple(f"Mulvane {k}" for k in range(turns))
        yield Probe([m for k in range(turns) for m in (_user(k), _thinking(k))], kept=kept)
        if supports_reasoning_field(processing_class):
            field = [_assistant(k, reasoning_content=f"Mulvane {k} so.") for k in range(turns)]
            yield Probe([m for k in range(turns) for m in (_user(k), field[k])], kept=kept)
    mixed = [_user(0), _assistant(0), _user(1), _thinking(1), _user(2), _assistant(2)]
    yield Probe(mixed, kept=("Mulvane 1",))


def _tooled(processing_class: Any) -> Iterator[Probe]:
    if not supports_tool_calling(processing_class):
        return
    for arguments in ({"plimth": "osk"}, '{"plimth": "osk"}'):
        call = _call(arguments)
        silent = {"role": "assistant", "content": "", "tool_calls": [call]}
        spoken = _assistant(0, tool_calls=[call])
        twice = _assistant(0, tool_calls=[call, call])
        for tools in ([], [_TOOL]):
            for asking in (silent, spoken):
                talk = [_user(0), asking, _result(0)]
                yield Probe(talk, tools)
                yield Probe([*talk, _assistant(1)], tools)
                yield Probe([_SYSTEM, *talk, _assistant(1), _user(2), _assistant(2)], tools)
            yield Probe([_user(0), twice, _result(0), _result(1), _assistant(1)], tools)
            yield Probe([_user(0), silent, _result(0), silent, _result(1), _assistant(1)], tools)


def probes_for(processing_class: Any) -> list[Probe]:
    """Turns of system, user and assistant, with reasoning and with tools as far as supported."""
    return [*_plain(), *_reasoned(processing_class), *_tooled(processing_class)]
