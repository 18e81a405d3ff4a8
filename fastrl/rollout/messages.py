"""What the model wrote, read as a message: content, reasoning, calls of tools."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from transformers.utils import get_json_schema

from fastrl.data.chat import one_of, render, tokenizer_of
from fastrl.data.formats import common_length

Message = dict[str, Any]
# One model type of each family whose format transformers' own server knows.
_KNOWN_FAMILIES = ("qwen3", "qwen3_5", "gemma4")
_PROBE_ARGUMENTS = {"word": "7", "count": 7}
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word up.",
        "parameters": {
            "type": "object",
            "properties": {
                "word": {"type": "string", "description": "The word."},
                "count": {"type": "integer", "description": "How many."},
            },
            "required": ["word", "count"],
        },
    },
}


class MessageReader:
    """Reads completions as assistant messages, by `tokenizer.parse_response`.

    The format is the tokenizer's `response_template`. Where it has none, the formats that
    transformers knows are tried: one is taken if it reads a call back from the text that the chat
    template makes of it.

    Args:
        processing_class: tokenizer or processor.
        chat_template: the one prompts are made with; None: its own.
        **template_kwargs: for the chat template.

    Raises:
        ValueError: the format is not known.
    """

    def __init__(
        self, processing_class: Any, chat_template: str | None = None, **template_kwargs: Any
    ) -> None:
        self.tokenizer = tokenizer_of(processing_class)
        parse = getattr(self.tokenizer, "parse_response", None)
        known = inspect.signature(parse).parameters if parse is not None else {}
        self._takes_tools = "tools" in known
        # Before transformers 5.13 the format was a JSON schema, and the prompt was not looked at.
        self._by_template = "prefix" in known
        self.attribute = "response_template" if self._by_template else "response_schema"
        self._format = getattr(self.tokenizer, self.attribute, None)
        written = _written_call(processing_class, chat_template, template_kwargs)
        if self._format is None and self._by_template:
            self._format = next((f for f in _known_formats() if self._reads(written, f)), None)
        elif self._by_template and not self._reads(written, self._format):
            warnings.warn(
                "tokenizer.response_template does not read a call of a tool back from what the "
                f"chat template makes of it, {written[1]!r}: a model that writes so calls no tool",
                stacklevel=3,
            )
        if self._format is None:
            raise ValueError(
                f"The tokenizer has no {self.attribute}, and no format transformers knows reads "
                f"a call of a tool as its chat template writes it, {written[1]!r}. Say how: "
                f"tokenizer.{self.attribute} = {{...}} (transformers' documentation, 'Response "
                "parsing')"
            )

    def state(self) -> None:
        """Set the format on the tokenizer, whose own `parse_response` reads by it then."""
        setattr(self.tokenizer, self.attribute, self._format)

    def read(
        self, ids: Sequence[int], prefix: Sequence[int], tools: Sequence[Mapping[str, Any]]
    ) -> Message:
        """A completion as `{"role": "assistant", "content": str, ...}`.

        What cannot be read, as a call that is not JSON, is a message whose content is the text.

        Args:
            ids: the completion.
            prefix: all tokens before it: templates may have begun the message.
            tools: JSON schemas, by which arguments get their types.
        """
        try:
            message = self._parsed(list(ids), list(prefix), tools, self._format)
            if not isinstance(message, dict):
                raise ValueError("nothing was read")
            content = message.get("content") or ""
            if isinstance(content, str):
                content = content.removesuffix(self.tokenizer.eos_token or "")
            message = {"role": "assistant", **message, "content": content}
            if "tool_calls" in message:
                message["tool_calls"] = _checked(message["tool_calls"])
        except (ValueError, TypeError):
            text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
            message = {"role": "assistant", "content": text}
        return message

    def _parsed(self, written: Any, prefix: Any, tools: Sequence[Any], form: Any) -> Any:
        if not self._by_template:
            return self.tokenizer.parse_response(written)
        more = {"tools": list(tools)} if self._takes_tools else {}
        return self.tokenizer.parse_response(written, form, prefix=prefix, **more)

    def _reads(self, written: tuple[str, str], form: Any) -> bool:
        """Whether a format finds the probe's call in what the chat template made of it."""
        prefix, text = written
        try:
            (call,) = _checked(self._parsed(text, prefix, [_PROBE_TOOL], form)["tool_calls"])
        except (ValueError, TypeError, KeyError):
            return False
        function = call.get("function", call)
        arguments = function["arguments"]
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        return bool(function["name"] == "look_up" and arguments == _PROBE_ARGUMENTS)


def add_response_schema(processing_class: Any = None, *, tokenizer: Any = None) -> Any:
    """Set on the tokenizer how its chat template writes answers and calls of tools.

    A format that the tokenizer has stays. Otherwise those that transformers knows are tried on a
    call of a tool as the template writes it, and the one that reads it back is set.

    Args:
        processing_class: tokenizer, or processor with one.
        tokenizer: the same, by its name in TRL 1.0.

    Returns:
        the same object; its tokenizer's `parse_response` works now.

    Raises:
        ValueError: no known format reads what the template writes.
    """
    processing_class = one_of(processing_class, tokenizer, "add_response_schema")
    MessageReader(processing_class).state()
    return processing_class


def parse_response(
    tokenizer: Any,
    ids: Sequence[int],
    prefix: Sequence[int] | None = None,
    tools: Sequence[Any] | None = None,
) -> Message:
    """A completion as an assistant message; one that cannot be read is its text.

    Args:
        tokenizer: its format, or one that is known to read its chat template, is used.
        ids: tokens of the completion.
        prefix: tokens of the prompt: templates may have begun the message.
        tools: functions or JSON schemas, by which arguments of calls get their types.

    Raises:
        ValueError: the format is not known.
    """
    schemas = [each if isinstance(each, Mapping) else get_json_schema(each) for each in tools or []]
    return MessageReader(tokenizer).read(ids, prefix or [], schemas)


def _known_formats() -> Iterator[dict[str, Any]]:
    """The formats that transformers' server falls back on."""
    try:
        from transformers.cli.serving.utils import get_response_template
    except ImportError:
        return
    bare = SimpleNamespace(response_template=None)
    for family in _KNOWN_FAMILIES:
        model: Any = SimpleNamespace(config=SimpleNamespace(model_type=family))
        form = get_response_template(bare, model)
        if form is not None:
            yield form


def _written_call(
    processing_class: Any, chat_template: str | None, template_kwargs: dict[str, Any]
) -> tuple[str, str]:
    """A prompt, and a call of the probe's tool as the chat template writes it."""

    def rendered(messages: list[Message], prompt: bool = False) -> str:
        options = {"chat_template": chat_template, **template_kwargs}
        return render(
            [messages], processing_class, [_PROBE_TOOL], add_generation_prompt=prompt, **options
        )[0]

    def conversation(arguments: Any) -> list[Message]:
        call = {"type": "function", "function": {"name": "look_up", "arguments": arguments}}
        return [user, {"role": "assistant", "content": "", "tool_calls": [call]}]

    user = {"role": "user", "content": "hi"}
    try:
        whole = rendered(conversation(_PROBE_ARGUMENTS))
    except TypeError:
        whole = rendered(conversation(json.dumps(_PROBE_ARGUMENTS)))
    border = common_length(rendered([user], prompt=True), whole)
    return whole[:border], whole[border:]


def _checked(calls: Any) -> list[dict[str, Any]]:
    """Calls that have a name each; arguments left out are none.

    Raises:
        ValueError: they are no such thing.
    """
    if not isinstance(calls, list):
        raise ValueError("tool_calls is no list")
    checked = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError("a call has no name")
        arguments = function.get("arguments")
        function = {**function, "arguments": {} if arguments is None else arguments}
        checked.append({**call, "function": function} if "function" in call else function)
    return checked
