"""What a chat template can do, found out by rendering."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import TemplateError

from fastrl.data.chat import Message, render, tokenizer_of

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def has_generation_markers(chat_template: str | dict[str, str]) -> bool:
    """Whether a template (of named ones the default) marks the assistant's part itself."""
    if isinstance(chat_template, dict):
        chat_template = chat_template["default"]
    return _GENERATION.search(chat_template) is not None


def _tool_exchange(arguments: Any) -> list[Message]:
    call = {"type": "function", "function": {"name": "fn_5qx", "arguments": arguments}}
    return [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "fn_5qx", "content": "result_8vz"},
    ]


def _rendered_exchange(processing_class: Any) -> tuple[list[Message], str]:
    """An exchange with a tool and its text; arguments as a string where a mapping will not do."""
    messages = _tool_exchange({"key_2mw": "value_7kd"})
    try:
        return messages, render([messages], processing_class)[0]
    except TypeError:
        messages = _tool_exchange('{"key_2mw": "value_7kd"}')
        return messages, render([messages], processing_class)[0]


def supports_tool_calling(processing_class: Any) -> bool:
    """Whether the template prints all of an exchange with a tool.

    That is the call's name and arguments, and the tool's message.
    """
    if processing_class.chat_template is None:
        return False
    try:
        _, text = _rendered_exchange(processing_class)
    except TemplateError:
        return False
    return all(part in text for part in ("fn_5qx", "key_2mw", "value_7kd", "result_8vz"))


def supports_reasoning_field(processing_class: Any) -> bool:
    """Whether the template prints the `reasoning_content` of a last message."""
    message = {"role": "assistant", "content": "yes", "reasoning_content": "thought_3hc"}
    try:
        text = render([[{"role": "user", "content": "hi"}, message]], processing_class)[0]
    except TemplateError:
        return False
    return "thought_3hc" in text


def is_chat_template_prefix_preserving(processing_class: Any) -> bool:
    """Whether a call of a tool is rendered the same with the tool's answer after it (ids equal)."""
    messages, _ = _rendered_exchange(processing_class)
    tokenizer = tokenizer_of(processing_class)
    before = render([messages[:2]], processing_class)[0]
    after = render([messages], processing_class, add_generation_prompt=True)[0]
    ids, later = tokenizer([before, after], add_special_tokens=False)["input_ids"]
    return later[: len(ids)] == ids
