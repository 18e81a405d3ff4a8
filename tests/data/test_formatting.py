"""Which text a dataset's features ask for, and how rows become it."""

from __future__ import annotations

import legacy_cases as cases
import pytest
from datasets import Dataset, Features, LargeList, List, Value

from fastrl.data.chat_setup import FORMAT_MAPPING, ChatMlSpecialTokens
from fastrl.data.formatting import (
    conversations_formatting_function,
    get_formatting_func_from_dataset,
    instructions_formatting_function,
)

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}: {{ m['content'] }}]{% endfor %}"
CHATS = [
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    [{"role": "system", "content": "c"}],
]
TEXTS = ["[user: a][assistant: b]", "[system: c]"]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = cases.load_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_conversations_formatting_function(tokenizer):
    function = conversations_formatting_function(tokenizer, "talk")
    assert function({"talk": CHATS}) == TEXTS
    assert [function({"talk": chat}) for chat in CHATS] == TEXTS


def test_instructions_formatting_function(tokenizer):
    function = instructions_formatting_function(tokenizer)
    assert function({"prompt": "a", "completion": "b"}) == TEXTS[0]
    rows = {"prompt": ["a", "x"], "completion": ["b", "y"]}
    assert function(rows) == [TEXTS[0], "[user: x][assistant: y]"]


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_conversations_are_found_and_formatted(tokenizer, column):
    dataset = Dataset.from_dict({column: CHATS, "other": [1, 2]})
    function = get_formatting_func_from_dataset(dataset, tokenizer)
    assert [function(row) for row in dataset] == TEXTS
    assert function(dataset[:]) == TEXTS
    made = dataset.map(lambda rows: {"text": function(rows)}, batched=True)
    assert list(made["text"]) == TEXTS


def test_instructions_are_found_and_formatted(tokenizer):
    dataset = Dataset.from_dict({"completion": ["b"], "prompt": ["a"]})
    function = get_formatting_func_from_dataset(dataset, tokenizer)
    assert [function(row) for row in dataset] == function(dataset[:]) == [TEXTS[0]]


def test_wide_lists_and_strings_are_the_same(tokenizer):
    wide = Value("large_string")
    features = Features({"messages": LargeList({"role": wide, "content": wide})})
    dataset = Dataset.from_dict({"messages": CHATS}, features=features)
    assert get_formatting_func_from_dataset(dataset, tokenizer) is not None


@pytest.mark.parametrize(
    "features",
    [
        {"text": Value("string")},
        {"prompt": Value("string"), "completion": Value("string"), "id": Value("int64")},
        {"prompt": Value("string"), "completion": Value("int64")},
        {"messages": Value("string")},
        {"messages": List(Value("string"))},
        {"messages": List({"role": Value("string"), "text": Value("string")})},
        {"messages": {"role": Value("string"), "content": Value("string")}},
    ],
)
def test_other_features_are_none_of_these(tokenizer, features):
    empty = Dataset.from_dict({name: [] for name in features}, features=Features(features))
    assert get_formatting_func_from_dataset(empty, tokenizer) is None


def test_only_datasets_have_features(tokenizer):
    assert get_formatting_func_from_dataset([{"messages": CHATS[0]}], tokenizer) is None


def test_chatml_special_tokens_write_themselves_out(tokenizer):
    tokens = FORMAT_MAPPING["chatml"]()
    assert tokens == ChatMlSpecialTokens("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert (tokens.system, tokens.user) == ("<|im_start|>system", "<|im_start|>user")
    own = ChatMlSpecialTokens(bos_token="<(", eos_token=")>")
    assert own.assistant == "<(assistant"
    rendered = tokenizer.apply_chat_template(
        CHATS[1], chat_template=own.chat_template, tokenize=False, add_generation_prompt=True
    )
    assert rendered == "<(system\nc)>\n<(assistant\n"
