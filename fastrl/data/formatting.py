"""Datasets of a known kind, and the function that makes their rows text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, List, Value
from transformers import PreTrainedTokenizerBase

_MESSAGE = {"content": Value("string"), "role": Value("string")}
_TURNS = {"prompt": "user", "completion": "assistant"}

# Kind of dataset -> the feature its conversations have, or all of its features.
FORMAT_MAPPING: dict[str, Any] = {
    "chatml": List(_MESSAGE),
    "instruction": {name: Value("string") for name in _TURNS},
}

Rows = Mapping[str, Any]
Formatting = Callable[[Rows], Any]
Tools = Sequence[Mapping[str, Any] | Callable[..., Any]] | None


def _rendered(
    tokenizer: PreTrainedTokenizerBase, chats: Any, batched: bool, tools: Tools = None
) -> Any:
    """One chat's text, or the list of several chats' texts."""
    if batched:
        return [_rendered(tokenizer, chat, False, tools) for chat in chats]
    return tokenizer.apply_chat_template(chats, tools=tools, tokenize=False)


def conversations_formatting_function(
    tokenizer: PreTrainedTokenizerBase, messages_field: str, tools: Tools = None
) -> Formatting:
    """What renders a row's conversation, or a batch's, by the chat template.

    Args:
        tokenizer: has the template.
        messages_field: the column of messages, each with `role` and `content`.
        tools: functions or JSON schemas that the template is told of.

    Returns:
        a function of one row, giving its text, or of a batch of rows, giving a list of texts.
    """

    def format_dataset(examples: Rows) -> Any:
        chats = examples[messages_field]
        return _rendered(tokenizer, chats, not isinstance(chats[0], Mapping), tools)

    return format_dataset


def instructions_formatting_function(tokenizer: PreTrainedTokenizerBase) -> Formatting:
    """What renders `prompt` and `completion` as a turn of the user and one of the assistant.

    Args:
        tokenizer: has the template.

    Returns:
        a function of one row, giving its text, or of a batch of rows, giving a list of texts.
    """

    def format_dataset(examples: Rows) -> Any:
        texts = [examples[name] for name in _TURNS]
        batched = not isinstance(texts[0], str)
        chats = [
            [
                {"role": role, "content": text}
                for role, text in zip(_TURNS.values(), row, strict=True)
            ]
            for row in (zip(*texts, strict=True) if batched else [texts])
        ]
        return _rendered(tokenizer, chats if batched else chats[0], batched)

    return format_dataset


def get_formatting_func_from_dataset(
    dataset: Any, tokenizer: PreTrainedTokenizerBase, tools: Tools = None
) -> Formatting | None:
    """The function that makes text of a dataset's rows, found by its features; None for no match.

    A column `messages` or `conversations` of {"role", "content"}, or the columns `prompt` and
    `completion` and no others, all strings.

    Args:
        dataset: a `datasets.Dataset`; of others None is returned.
        tokenizer: has the chat template.
        tools: functions or JSON schemas that conversations may use.
    """
    if not isinstance(dataset, Dataset):
        return None
    for column in ("messages", "conversations"):
        if column in dataset.features and _same(dataset.features[column], FORMAT_MAPPING["chatml"]):
            return conversations_formatting_function(tokenizer, column, tools)
    if _same(dict(dataset.features), FORMAT_MAPPING["instruction"]):
        return instructions_formatting_function(tokenizer)
    return None


def _same(found: Any, wanted: Any) -> bool:
    """Whether two features are alike; lists may be spelt `List(x)`, `LargeList(x)` or `[x]`."""
    found, wanted = (_plain(feature) for feature in (found, wanted))
    return found == wanted


def _plain(feature: Any) -> Any:
    if isinstance(feature, Value):
        return feature.dtype.removeprefix("large_")
    if isinstance(feature, Mapping):
        return {name: _plain(inner) for name, inner in feature.items()}
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return [_plain(inner)] if inner is not None else type(feature)
