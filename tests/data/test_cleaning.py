"""Rows without what storage or memory put into them."""

from __future__ import annotations

import legacy_cases as cases
import pytest

from fastrl.data.chat_setup import SIMPLE_CHAT_TEMPLATE, SIMPLE_SFT_CHAT_TEMPLATE
from fastrl.data.cleaning import identity, remove_none_values, strip_images_from_messages
from fastrl.data.formatting import conversations_formatting_function


def test_none_is_removed_from_dicts_at_any_depth():
    row = {"a": None, "b": [{"c": None, "d": {"e": None, "f": 0}}, None, ["x", {"g": None}]]}
    assert remove_none_values(row) == {"b": [{"d": {"f": 0}}, None, ["x", {}]]}
    assert remove_none_values([{"a": None, "b": ""}]) == [{"b": ""}]
    with pytest.raises(TypeError, match="must be a list or a dict, got str"):
        remove_none_values("a")


def test_images_leave_their_place_in_a_conversation():
    text = {"type": "text", "text": "what is it?"}
    chat = [
        {"role": "user", "content": [{"type": "image", "image": object()}, text]},
        {"role": "assistant", "content": "a cat"},
    ]
    assert strip_images_from_messages(chat) == [
        {"role": "user", "content": [{"type": "image"}, text]},
        chat[1],
    ]
    assert "image" in chat[0]["content"][0], "the conversation itself is left alone"
    assert strip_images_from_messages("text") == identity("text") == "text"


def test_simple_chat_templates():
    tokenizer = cases.load_tokenizer()
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    tokenizer.chat_template = SIMPLE_CHAT_TEMPLATE
    render = conversations_formatting_function(tokenizer, "messages")
    assert render({"messages": chat}) == "User: hi\n\nAssistant: yes\n\n"
    asked = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "User: hi\n\nAssistant:"
    tokenizer.chat_template = SIMPLE_SFT_CHAT_TEMPLATE
    assert render({"messages": chat}) == " hi yes</s>"
