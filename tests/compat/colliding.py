"""What the tests of colliding names share: no pin at their start, a tokenizer, a model, rows.

What they expect of a release was read off its source: defaults, order of arguments, rows.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import fastrl

WORDS = ["the", "cat", "sat", "on", "a", "mat", "user", "assistant"]
CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
QUIET = {"use_cpu": True, "report_to": "none"}
TEXTS = Dataset.from_list([{"text": "the cat sat"}, {"text": "on a mat"}])
PAIRS = Dataset.from_list([{"prompt": "the cat", "chosen": " sat", "rejected": " a mat"}] * 2)


@pytest.fixture(autouse=True)
def no_pin(monkeypatch):
    """Nothing is pinned before a test, nor after it."""
    monkeypatch.delenv("FASTRL_API", raising=False)
    yield
    fastrl.set_api(None)


@pytest.fixture(name="tokenizer")
def word_tokenizer():
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<bos>", "<eos>", *WORDS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def model(kind=GPT2LMHeadModel):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=11, n_positions=32, n_embd=8, n_layer=1, n_head=2, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, num_labels=1,
    )  # fmt: skip
    return kind(config)


def quietly(call, *args, **kwargs):
    """The result of a call whose old spellings are not this test's subject."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return call(*args, **kwargs)
