"""What a chat template can do, found out by rendering."""

from __future__ import annotations

import re

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def has_generation_markers(chat_template: str | dict[str, str]) -> bool:
    """Whether a template (of named ones the default) marks the assistant's part itself."""
    if isinstance(chat_template, dict):
        chat_template = chat_template["default"]
    return _GENERATION.search(chat_template) is not None
