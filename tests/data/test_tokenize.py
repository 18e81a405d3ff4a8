"""Encoding by pieces and by words is the tokenizer's own encoding."""

from __future__ import annotations

import random

import preparation_cases as cases
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fastrl.data import words
from fastrl.data.tokenize import Encoder

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "qwen": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


def byte_level(split: str = "qwen", normalizer=None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = SPLITS[split]
    backend.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=cases.SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(cases.SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.chat_template = cases.TEMPLATES["plain"]
    return tokenizer


def metaspace() -> PreTrainedTokenizerFast:
    """A tokenizer that treats the first word of a text unlike others, as some Llamas do."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    special = ["<unk>", *cases.SPECIAL]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    backend.train_from_iterator(cases.SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def random_texts(count: int, kinds: list[str], length: int = 40) -> list[str]:
    source = random.Random(1)
    return ["".join(source.choice(kinds) for _ in range(length)) for _ in range(count)]


ASCII = [
    "a",
    "Is",
    "sky",
    "'s",
    "'LL",
    "7",
    "42",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "!",
    "_x",
    '"',
    "-",
]
OTHERS = ["é", "e\u0301", "是", "\u00a0", "\u2028", "\u017f", "\x1c", "\x0b", "🙂"]


@pytest.fixture
def few_cores(monkeypatch):
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")


@pytest.mark.parametrize("split", SPLITS)
def test_words(split, few_cores):
    tokenizer = byte_level(split, normalizers.NFC())
    encoder = words.word_encoder(tokenizer)
    texts = random_texts(300, ASCII)
    assert [encoder(text) for text in texts] == tokenizer(texts)["input_ids"]
    for character in OTHERS:
        assert encoder("a " + character) is None


def test_many_cores_are_left_to_the_library(monkeypatch):
    monkeypatch.setenv("RAYON_NUM_THREADS", "16")
    assert words.word_encoder(byte_level()) is None


def test_tokenizers_of_another_kind_have_no_words(few_cores):
    assert words.word_encoder(metaspace()) is None
    assert words.word_encoder(byte_level(normalizer=normalizers.Lowercase())) is None
    prefixed = byte_level()
    prefixed.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert words.word_encoder(prefixed) is None


def test_an_expression_that_python_reads_otherwise_is_found_out(few_cores, monkeypatch):
    monkeypatch.setattr(words, "_pattern", lambda spec: r" ?\S+|\s+")
    assert words.word_encoder(byte_level()) is None


@pytest.mark.parametrize("cores", ["1", "16"])
@pytest.mark.parametrize("make", [byte_level, metaspace], ids=["bytes", "metaspace"])
def test_pieces(make, cores, monkeypatch):
    monkeypatch.setenv("RAYON_NUM_THREADS", cores)
    tokenizer = make()
    encoder = Encoder(tokenizer)
    texts = ["", *random_texts(200, [*ASCII, *OTHERS, *cases.SPECIAL])]
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert encoder._joined(texts) == expected
    assert encoder.by_pieces, "and it was by pieces"


def test_a_tokenizer_of_which_pieces_are_not_true_is_found_out():
    tokenizer = byte_level()
    encoder = Encoder(tokenizer)
    encoder.known["<|im_start|>a"] = [0]
    texts = ["b", *["<|im_start|>a"] * 20]
    assert encoder._joined(texts) == tokenizer(texts)["input_ids"]
    assert not encoder.by_pieces


@pytest.mark.parametrize("option", ["lstrip", "rstrip", "single_word", "normalized"])
def test_texts_are_not_cut_at_tokens_that_look_around(option):
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<call>", **{"normalized": False, option: True})])
    encoder = Encoder(tokenizer)
    assert encoder.cut is None
    texts = random_texts(50, [*ASCII, "<call>", "<|im_end|>"])
    assert encoder.texts(texts) == tokenizer(texts)["input_ids"]


@pytest.mark.parametrize("bos", [False, True])
def test_texts_get_what_the_tokenizer_adds(bos, few_cores):
    tokenizer = cases.load_tokenizer(bos=bos)
    encoded = Encoder(tokenizer).texts(cases.SENTENCES)
    assert encoded == [tokenizer(text)["input_ids"] for text in cases.SENTENCES]
    assert (encoded[0][0] == 1) == bos


def test_conversations(few_cores):
    tokenizer = cases.load_tokenizer("tools")
    chats = [row["messages"] for row in cases.MESSAGES]
    arguments = [{"tools": [cases.WEATHER] if i < 2 else None, "polite": i > 3} for i in range(5)]
    for repeated in (False, True):
        encoded = Encoder(tokenizer).chats(chats, arguments, True, repeated)
        assert encoded == [
            tokenizer.apply_chat_template(chat, add_generation_prompt=True, **own)["input_ids"]
            for chat, own in zip(chats, arguments, strict=True)
        ]
