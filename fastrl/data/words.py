"""Byte-level BPE by a memory of words, for plain ASCII text: exact, and faster than one thread.

A byte-level BPE tokenizer (GPT-2, Llama 3, Qwen) cuts a text into words by a regular expression and
merges each by itself. Words repeat, so their ids are remembered; a new one goes to the tokenizer's
own model. Letters, digits and blanks of ASCII are the same to every regular-expression engine and
are left alone by Unicode normal forms, so only text of these is taken.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Mapping
from itertools import chain
from multiprocessing import parent_process
from typing import Any

import regex

_OTHER = re.compile(r"[^\t\n\r -~]")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_NORMAL_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}
# How byte-level models write bytes: printable ones as themselves, others from U+0100 on.
_LETTERS = {byte: 256 + byte for byte in range(33)} | {127: 289}
_REMEMBERED = 1_000_000  # words
_PROBE = 4000  # characters


class _Words(dict[str, list[int]]):
    """Word -> ids, from the model where it is new."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def __missing__(self, word: str) -> list[int]:
        ids = [token.id for token in self.model.tokenize(word.translate(_LETTERS))]
        if len(self) < _REMEMBERED:
            self[word] = ids
        return ids


def _pattern(spec: Mapping[str, Any]) -> str | None:
    """The expression whose matches are a tokenizer's words; None for another kind of tokenizer."""
    normalizer = spec["normalizer"]
    if normalizer is not None and normalizer["type"] not in _NORMAL_FORMS:
        return None
    if spec["model"]["type"] != "BPE" or spec["model"].get("dropout"):
        return None
    steps = [spec["pre_tokenizer"] or {"type": None}]
    if steps[0]["type"] == "Sequence":
        steps = steps[0]["pretokenizers"]
    *splits, last = steps
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if not splits:
        return _GPT2 if last["use_regex"] else None
    split = splits[0]
    whole = len(splits) == 1 and not last["use_regex"] and split["type"] == "Split"
    if not whole or split["behavior"] != "Isolated" or split["invert"]:
        return None
    return split["pattern"].get("Regex")


def _probe_text() -> str:
    """Kinds of characters in all neighbourhoods."""
    source = random.Random(0)
    kinds = ["a", "Z", "the", "7", "42", " ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "!", "_", '"']
    return "".join(source.choice(kinds) for _ in range(_PROBE))


class WordEncoder:
    """Ids of a text without special tokens; None for a text it does not take."""

    def __init__(self, backend: Any, pattern: str) -> None:
        self.find = regex.compile(pattern).findall
        self.words = _Words(backend.model)

    def __call__(self, text: str) -> list[int] | None:
        if _OTHER.search(text):
            return None
        words = self.find(text)
        if sum(map(len, words)) != len(text):
            return None
        return [*chain.from_iterable(map(self.words.__getitem__, words))]


def word_encoder(tokenizer: Any) -> WordEncoder | None:
    """The encoder for a tokenizer of this family; None for others, or where it would not be faster.

    It is compared with the tokenizer on a text of all kinds of ASCII neighbours. The library itself
    encodes on all cores, which wins where there are many, outside of worker processes.
    """
    alone = parent_process() is None
    if alone and int(os.environ.get("RAYON_NUM_THREADS", os.cpu_count() or 1)) > 4:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    pattern = _pattern(json.loads(backend.to_str()))
    if pattern is None:
        return None
    try:
        encoder = WordEncoder(backend, pattern)
    except regex.error:
        return None
    text = _probe_text()
    same = encoder(text) == backend.encode(text, add_special_tokens=False).ids
    return encoder if same else None
