"""Noticing that an answer has come to a stop string."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


class StopStrings:
    """Whether the newest token completes one of some strings.

    Args:
        tokenizer: decodes the answer's last tokens; special tokens count as their text.
        strings: what an answer stops at.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._strings = strings
        # A token adds a byte at least; some more, since a decoder may change what it begins with.
        self._tail = max(len(text.encode()) for text in strings) + 8

    def __call__(self, ids: list[int]) -> bool:
        """Of an answer that held none of the strings without its last token."""
        text = self._tokenizer.decode(ids[-self._tail :], clean_up_tokenization_spaces=False)
        return any(string in text for string in self._strings)
