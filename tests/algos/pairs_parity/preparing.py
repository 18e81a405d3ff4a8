"""Rows that ORPO and CPO prepare: datasets, tokenizers and limits, the same on either side."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import Any

import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models

from tests.algos.offline_parity import making

COLUMNS = [
    "prompt_input_ids",
    "prompt_attention_mask",
    *(
        f"{side}_{name}"
        for side in ("chosen", "rejected")
        for name in ("input_ids", "attention_mask", "labels")
    ),
]


@dataclass(frozen=True)
class Prepared:
    """A dataset, its tokenizer, and what the config says of it."""

    name: str
    rows: str  # see `dataset`
    merging: bool = False  # the tokenizer: `merging()` or `making.tokenizer()`
    config: dict[str, Any] = field(default_factory=dict)


CASES = [
    Prepared("text", "preference"),
    Prepared("chat", "preference_chat"),
    Prepared("implicit_cut", "preference_implicit", config={"max_length": 40}),
    Prepared("merging", "merged", merging=True),
    Prepared("merging_cut", "merged", merging=True, config={"max_length": 5}),
]


def merging() -> transformers.PreTrainedTokenizerFast:
    """Pairs of letters merge, over spaces and the end of a prompt too; with BOS, never added."""
    letters = ["<pad>", "<s>", "</s>", *string.ascii_lowercase, " "]
    pairs = [("a", "b"), ("c", " "), ("ab", "c"), ("d", "d")]
    vocabulary = {token: i for i, token in enumerate([*letters, *("".join(p) for p in pairs)])}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, pairs)),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )


def dataset(kind: str) -> Dataset:
    """Of `making.rows`, or "merged": prompts whose last letter merges into one answer or both."""
    if kind != "merged":
        return making.rows(kind, 6, seed=3)
    texts = [
        ("xya", "bz", "qz"),
        ("xya", "bcz", "bq"),
        ("xyc", " z", "z"),
        ("d", "dz", "e"),
        ("<s>xy", "z</s>", "qd"),
        ("xyd", "dddd", "dd dd"),
    ]
    names = ("prompt", "chosen", "rejected")
    return Dataset.from_list([dict(zip(names, text, strict=True)) for text in texts])


def tokenizer(case: Prepared) -> transformers.PreTrainedTokenizerFast:
    return merging() if case.merging else making.tokenizer()
