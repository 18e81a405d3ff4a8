"""Functions that a model may call, and what it gets back."""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils import get_json_schema

from fastrl.rewards.event_loop import EventLoop

Message = dict[str, Any]


@dataclass(frozen=True)
class Toolbox:
    """The tools of a row."""

    functions: dict[str, Callable[..., Any]]  # by the name the model uses
    schemas: list[dict[str, Any]]  # as chat templates print them, in the order given


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a call."""

    why: str


def toolbox(tools: Sequence[Callable[..., Any]]) -> Toolbox:
    """Tools by name, with their JSON schemas.

    A tool is a function or method, sync or async, with a type hint on every argument and a
    docstring in Google's style: what it does, and a line under `Args:` for each argument. Both are
    shown to the model:

    ```python
    def add(a: int, b: int) -> int:
        \"\"\"Adds two numbers.

        Args:
            a: The first.
            b: The second.
        \"\"\"
        return a + b
    ```

    Raises:
        TypeError: something that cannot be called.
        ValueError: a tool that cannot be described to the model, or two of one name.
    """
    functions: dict[str, Callable[..., Any]] = {}
    schemas = []
    for i, tool in enumerate(tools):
        if not callable(tool):
            raise TypeError(
                f"tools[{i}] is {tool!r}: give the function itself; its schema is made from its "
                "type hints and docstring"
            )
        try:
            schema = get_json_schema(tool)
        except Exception as error:
            raise ValueError(
                f"tools[{i}], {getattr(tool, '__name__', tool)!r}, cannot be described to the "
                f"model: {error}. Give it a type hint for every argument and a docstring with a "
                "line under 'Args:' for each"
            ) from error
        name = schema["function"]["name"]
        if name in functions:
            raise ValueError(
                f"tools[{i}] is the second tool named {name!r}, and the model could not say which "
                "it means: rename one"
            )
        functions[name] = tool
        schemas.append(schema)
    return Toolbox(functions, schemas)


def answer_calls(
    calls: Sequence[tuple[Toolbox, Mapping[str, Any]]], loop: EventLoop
) -> list[tuple[Message, bool]]:
    """The tool message of each call, and whether the call failed.

    Functions run in the order given; after them all coroutines run at once. Whatever goes wrong in
    a call (no such tool, wrong arguments, an exception) is its result, `{'error': ...}`: the model
    reads it and may do better. Results stand in the order of the calls.

    Args:
        calls: the row's tools and an entry of its message's `tool_calls`, with the arguments as a
            mapping or as JSON.
        loop: where coroutines run.

    Raises:
        ValueError: a tool gave an image or another block that is no text.
    """
    results = [_begun(tools, call) for tools, call in calls]
    waiting = [i for i, result in enumerate(results) if inspect.isawaitable(result)]
    if waiting:
        running = loop.start([_settled(results[i]) for i in waiting], None)
        for i, result in zip(waiting, running.result(), strict=True):
            results[i] = result
    return [
        (_message(_name_of(call), result), isinstance(result, _Failure))
        for (_, call), result in zip(calls, results, strict=True)
    ]


def _function_of(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """Name and arguments lie within `function`, or, from some parsers, in the call itself."""
    function: Mapping[str, Any] = call.get("function", call)
    return function


def _name_of(call: Mapping[str, Any]) -> str:
    return str(_function_of(call).get("name", "unknown"))


def _begun(tools: Toolbox, call: Mapping[str, Any]) -> Any:
    """A function's result, a coroutine to wait for, or a failure."""
    kind = call.get("type", "function")
    if kind != "function":
        return _Failure(f"calls of type {kind!r} are not known, only 'function'")
    name = _name_of(call)
    if name not in tools.functions:
        return _Failure(f"there is no tool {name!r}, only {', '.join(tools.functions)}")
    arguments = _function_of(call).get("arguments") or {}
    try:
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        return tools.functions[name](**arguments)
    except Exception as error:
        return _Failure(str(error))


async def _settled(result: Awaitable[Any]) -> Any:
    try:
        return await result
    except Exception as error:
        return _Failure(str(error))


def _message(name: str, result: Any) -> Message:
    if isinstance(result, _Failure):
        content: Any = str({"error": result.why})
    elif _is_blocks(result):
        others = sorted({str(block["type"]) for block in result} - {"text"})
        if others:
            raise ValueError(
                f"Tool {name!r} gave content of type {', '.join(others)}; tools may give text only"
            )
        content = result
    else:
        content = str(result)
    return {"role": "tool", "name": name, "content": content}


def _is_blocks(result: Any) -> bool:
    """Whether it is the content of a message already: a list of `{"type": ...}`."""
    return (
        isinstance(result, list)
        and bool(result)
        and all(isinstance(block, dict) and "type" in block for block in result)
    )
