"""Rows without what storage or memory put into them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

TListOrMapping = TypeVar("TListOrMapping", list, Mapping)


def remove_none_values(example: TListOrMapping) -> TListOrMapping:
    """A nested list or dict without the entries of dicts that are None, at any depth.

    Tables fill them in where nested rows have different keys: use it by
    `dataset.with_transform(remove_none_values)`.

    Raises:
        TypeError: for neither a list nor a mapping.
    """
    if not isinstance(example, list | Mapping):
        raise TypeError(f"example must be a list or a dict, got {type(example).__name__}")
    return _without_none(example)


def _without_none(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_none(inner) for inner in value]
    if isinstance(value, Mapping):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return value


def strip_images_from_messages(messages: Any) -> Any:
    """A conversation whose image parts are `{"type": "image"}` alone; anything else as it is."""
    if not isinstance(messages, list):
        return messages
    return [
        {**message, "content": [_named(part) for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def _named(part: Any) -> Any:
    return {"type": "image"} if part.get("type") == "image" else part


def identity(x: Any) -> Any:
    """What it is given: the collator of rows that are to stay a list."""
    return x
