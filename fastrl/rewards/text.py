"""The text that a reward function judges."""

from __future__ import annotations

from typing import Any

Completion = str | list[dict[str, Any]]


def text_of(completion: Completion) -> str:
    """A completion's text: itself, or the content of its first message.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(completion, str):
        return completion
    try:
        content = completion[0]["content"]
    except (TypeError, KeyError, IndexError) as error:
        raise TypeError(
            f"a completion must be a text or a list of messages with content, not {completion!r}"
        ) from error
    return content or ""
