"""Texts and messages -> token ids, many rows a call."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any

from fastrl.data.chat import render, tokenizer_of
from fastrl.data.words import WordEncoder, word_encoder

Messages = list[dict[str, Any]]
TokenLists = list[list[int]]
_CHECKED = 4  # texts of a call that are also encoded the tokenizer's way
_REMEMBERED = 10_000  # pieces


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


class Encoder:
    """Encodes the texts of a dataset, each as its tokenizer would.

    Texts are cut before each special token and every piece is encoded once: conversations repeat
    each other, as a prompt comes alone and before each answer. That is exact, since the tokenizers
    library sets special tokens apart before it normalises, splits and merges what lies between.
    Some texts of every call are encoded whole too; where they differ, all are from then on.
    """

    def __init__(self, processing_class: Any) -> None:
        self.processing_class = processing_class
        self.tokenizer = tokenizer_of(processing_class)
        self.known: dict[str, list[int]] = {}
        self.by_pieces = True

    def texts(self, texts: Sequence[str], add_special_tokens: bool = True) -> TokenLists:
        """Token ids of each text, with the special tokens the tokenizer adds or without."""
        adds = add_special_tokens and self.tokenizer.num_special_tokens_to_add()
        if self.words is None or adds:
            return self._whole(texts, add_special_tokens)
        return self._joined(texts)

    def chats(
        self,
        chats: Sequence[Messages],
        arguments: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        repeated: bool = False,
    ) -> TokenLists:
        """Token ids of each conversation. The chat template alone adds special tokens.

        Args:
            chats: conversations, none of them empty.
            arguments: for each the template's keywords, `tools` among them.
            add_generation_prompt: end with the header of an answer to come.
            repeated: other conversations nearby have much of the same text.
        """

        def rendered(some: list[Messages], **options: Any) -> list[str]:
            options["add_generation_prompt"] = add_generation_prompt
            return render(some, self.processing_class, **options)

        texts = over_equal(rendered, chats, arguments)
        if repeated or self.words is not None:
            return self._joined(texts)
        return self._whole(texts, add_special_tokens=False)

    def _whole(self, texts: Sequence[str], add_special_tokens: bool) -> TokenLists:
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=add_special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return encoded["input_ids"]

    @cached_property
    def cut(self) -> re.Pattern[str] | None:
        """Matches special tokens, before which a text may be cut; None if it may not."""
        if not getattr(self.tokenizer, "is_fast", False) or self.tokenizer.split_special_tokens:
            return None
        tokens = self.tokenizer.added_tokens_decoder.values()
        if any(t.normalized or t.lstrip or t.rstrip or t.single_word for t in tokens):
            return None
        contents = sorted((t.content for t in tokens), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, contents)) or r"(?!)")

    @cached_property
    def words(self) -> WordEncoder | None:
        """The faster encoder of text between special tokens, where there is one."""
        return None if self.cut is None else word_encoder(self.tokenizer)

    @staticmethod
    def _pieces(cut: re.Pattern[str], text: str) -> list[str]:
        starts = (match.start() for match in cut.finditer(text))
        borders = [0, *(start for start in starts if start), len(text)]
        return [text[a:b] for a, b in pairwise(borders)]

    def _joined(self, texts: Sequence[str]) -> TokenLists:
        """The texts, without added special tokens, put together from their pieces."""
        cut = self.cut
        if not self.by_pieces or cut is None:
            return self._whole(texts, add_special_tokens=False)
        if len(self.known) > _REMEMBERED:
            self.known.clear()
        pieces = [self._pieces(cut, text) for text in texts]
        self._learn({piece for row in pieces for piece in row if piece not in self.known}, cut)
        joined = [[token for piece in row for token in self.known[piece]] for row in pieces]
        step = max(1, len(texts) // _CHECKED)
        self.by_pieces = joined[::step] == self._whole(texts[::step], add_special_tokens=False)
        return joined if self.by_pieces else self._whole(texts, add_special_tokens=False)

    def _learn(self, pieces: set[str], cut: re.Pattern[str]) -> None:
        left = []
        for piece in pieces:
            ids = self._by_words(self.words, piece, cut) if self.words else None
            if ids is None:
                left.append(piece)
            else:
                self.known[piece] = ids
        self.known.update(zip(left, self._whole(left, add_special_tokens=False), strict=True))

    def _by_words(self, words: WordEncoder, piece: str, cut: re.Pattern[str]) -> list[int] | None:
        special = cut.match(piece)
        if special is None:
            return words(piece)
        ids = words(piece[special.end() :])
        return None if ids is None else [self.special[special.group()], *ids]

    @cached_property
    def special(self) -> dict[str, int]:
        """The id of each special token."""
        return {t.content: i for i, t in self.tokenizer.added_tokens_decoder.items()}
