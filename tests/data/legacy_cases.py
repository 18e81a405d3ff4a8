"""Rows on which the collator and the packed stream of TRL 0.7 are compared; needs neither."""

from __future__ import annotations

import random
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

RESPONSE = [5, 6]
INSTRUCTION = [8]
# Templates alone, twice, absent, at the end, in alternation, and answers before instructions.
ROWS = [
    [1, 2, 5, 6, 11, 12],
    [1, 5, 6, 11, 5, 6, 12, 13, 14],
    [8, 1, 5, 6, 11, 8, 2, 5, 6, 12, 2],
    [5, 6, 11, 12, 8, 1, 2, 5, 6, 13],
    [8, 1, 2, 5, 6, 11, 8, 3],
    [8, 8, 1, 5, 6, 11, 5, 6, 9],
    [1, 2, 3, 4],
    [8, 1, 2, 3],
    [1, 5, 5, 6, 7, 5, 6],
    [8, 5, 6, 9, 8, 5, 6, 9, 8, 5, 6, 9, 8],
]
TEXTS = [{"text": "rain on the roof " * (1 + i % 4), "id": i} for i in range(43)]
STREAMS: dict[str, dict[str, Any]] = {
    "plain": {"seq_length": 16, "num_of_sequences": 8},
    "unshuffled": {"seq_length": 10, "num_of_sequences": 4, "shuffle": False},
    "bare": {"seq_length": 12, "num_of_sequences": 100, "append_concat_token": False},
}


def load_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of words, which the releases of both peers can read."""
    words = ["<pad>", "</s>", "rain", "on", "the", "roof", *map(str, range(6, 20))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")


def masked(collator: Any, tokenizer: Any) -> list[list[list[int]]]:
    """Labels under the response template alone, then under both."""
    out = []
    for templates in ((RESPONSE,), (RESPONSE, INSTRUCTION)):
        collate = collator(*templates, tokenizer=tokenizer)
        out.append(collate([{"input_ids": row} for row in ROWS])["labels"].tolist())
    return out


def streamed(stream: Any, tokenizer: Any) -> dict[str, list[list[int]]]:
    out = {}
    for name, options in STREAMS.items():
        random.seed(1)
        rows = stream(tokenizer, TEXTS, dataset_text_field="text", **options)
        out[name] = [row["input_ids"].tolist() for row in rows]
    return out
