"""add_response_schema and parse_response: the format is what a template's own calls prove."""

from __future__ import annotations

import copy

import pytest
from tool_cases import END, TEMPLATE, XML, add, chat_tokenizer

import fastrl
from fastrl.rollout.messages import parse_response

JSON_CALL = 'Hm.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
XML_CALL = (
    "Hm.\n<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n"
    "<parameter=b>\n2\n</parameter>\n</function>\n</tool_call>"
)
CALLED = {
    "role": "assistant",
    "content": "Hm.",
    "tool_calls": [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    ],
}


@pytest.mark.parametrize(("template", "call"), [(TEMPLATE, JSON_CALL), (XML, XML_CALL)])
def test_the_tokenizer_reads_calls_afterwards(template, call):
    tokenizer = chat_tokenizer(None, template)
    assert getattr(tokenizer, "response_template", None) is None
    assert fastrl.add_response_schema(tokenizer) is tokenizer
    assert fastrl.chat_template_utils.add_response_schema(tokenizer=tokenizer) is tokenizer
    prefix = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    read = tokenizer.parse_response(call + END, prefix=prefix, tools=[add])
    assert read["tool_calls"] == CALLED["tool_calls"]


def test_a_format_that_is_there_stays():
    tokenizer = fastrl.add_response_schema(chat_tokenizer(None))
    own = copy.deepcopy(tokenizer.response_template)
    fastrl.add_response_schema(tokenizer)
    assert tokenizer.response_template == own


def test_a_completion_is_read_and_what_cannot_be_read_is_text():
    tokenizer = chat_tokenizer(None, XML)
    prefix = tokenizer("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    ids = tokenizer(XML_CALL + END)["input_ids"]
    assert parse_response(tokenizer, ids, prefix, [add]) == CALLED  # typed by the function's hints
    plain = parse_response(tokenizer, tokenizer("Well." + END)["input_ids"], prefix)
    assert plain == {"role": "assistant", "content": "Well."}


def test_a_template_of_no_known_format_is_refused():
    tokenizer = chat_tokenizer(None, TEMPLATE.replace("tool_call>", "appeal>"))
    with pytest.raises(ValueError, match="no format transformers knows reads a call"):
        fastrl.add_response_schema(tokenizer)
