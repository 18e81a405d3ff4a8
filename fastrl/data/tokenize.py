"""Texts and messages -> token ids, many rows a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from fastrl.data.chat import render, tokenizer_of

Messages = list[dict[str, Any]]


def encode_texts(
    processing_class: Any, texts: Sequence[str], add_special_tokens: bool = True
) -> list[list[int]]:
    """Token ids of each text, as the tokenizer gives them one by one."""
    if not texts:
        return []
    encoded = tokenizer_of(processing_class)(
        list(texts),
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return encoded["input_ids"]


def over_equal(
    function: Callable[..., list[Any]],
    values: Sequence[Any],
    arguments: Sequence[Mapping[str, Any]],
) -> list[Any]:
    """`function(some values, **their arguments)` over runs of neighbours with equal arguments."""
    results: list[Any] = []
    for _, run in groupby(range(len(values)), key=lambda row: arguments[row]):
        rows = list(run)
        results += function([values[row] for row in rows], **arguments[rows[0]])
    return results


def encode_chats(
    processing_class: Any,
    chats: Sequence[Messages],
    arguments: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = False,
) -> list[list[int]]:
    """Token ids of each conversation. The chat template alone adds special tokens.

    Args:
        processing_class: tokenizer or processor with a chat template.
        chats: conversations, none of them empty.
        arguments: for each the template's keywords, `tools` among them.
        add_generation_prompt: end with the header of an answer to come.
    """

    def rendered(some: list[Messages], **options: Any) -> list[str]:
        return render(
            some, processing_class, add_generation_prompt=add_generation_prompt, **options
        )

    texts = over_equal(rendered, chats, arguments)
    return encode_texts(processing_class, texts, add_special_tokens=False)
