"""Preparation of conversations for SFT in `trl` (1.16) or `fastrl`: text in, token ids out.

    python prepare.py trl|fastrl         then requests on standard input, see protocol.py

A round builds an `SFTTrainer` around a model of a few thousand weights, so what it takes is the
rows. Conversations and tokenizer are new in each round: nothing is remembered from the last.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import protocol
import torch
import transformers
from datasets import Dataset, disable_progress_bars

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYLLABLES = ["".join(pair) for pair in itertools.product("bdfgklmnprstvz", "aeiou")]
WORDS = 50_000  # kinds of words, as frequent as the inverse of their rank
LENGTHS = (4, 60)  # least and most words of a message
# Beside words: numbers, ends of sentences, and now and then what is not ASCII.
SPICE = (".", ",", "?", "\n\n", "\u2019", "é", "\u2014")
SPICE_SHARE = (0.35, 0.45, 0.08, 0.1, 0.01, 0.005, 0.005)


def vocabulary() -> np.ndarray:
    """The words, the same in every run; shorter ones are more frequent."""
    rng = np.random.default_rng(0)
    words: dict[str, None] = {}
    while len(words) < WORDS:
        count = min(1 + int(rng.geometric(0.45)), 6)
        words["".join(rng.choice(SYLLABLES, count))] = None
    return np.array(sorted(words, key=len), dtype=object)


def messages(seed: list[int], count: int) -> list[str]:
    """Texts of words by Zipf's law, one in nine followed by a mark, one in forty a number."""
    rng = np.random.default_rng(seed)
    words = vocabulary()
    lengths = rng.integers(LENGTHS[0], LENGTHS[1] + 1, count)
    total = int(lengths.sum())
    share = 1 / np.arange(1, WORDS + 1)
    text = words[np.searchsorted(share.cumsum() / share.sum(), rng.random(total))]
    numbers = rng.random(total) < 1 / 40
    text[numbers] = [str(n) for n in rng.integers(0, 10_000, int(numbers.sum()))]
    marked = rng.random(total) < 1 / 9
    text[marked] += rng.choice(np.array(SPICE, dtype=object), int(marked.sum()), p=SPICE_SHARE)
    return [" ".join(part) for part in np.split(text, np.cumsum(lengths)[:-1])]


def conversations(seed: int, number: int, count: int) -> Dataset:
    """Of two or four turns, in turn; every second begins with the same system message."""
    texts = iter(messages([seed, number], 3 * count))
    rows = []
    for row in range(count):
        turns = [{"role": "system", "content": "You are a helpful assistant."}][: row // 2 % 2]
        for side in range(2 + 2 * (row % 2)):
            turns.append({"role": ("user", "assistant")[side % 2], "content": next(texts)})
        rows.append(turns)
    return Dataset.from_dict({"messages": rows})


def write_tokenizer(path: Path) -> None:
    """A byte-level BPE in the manner of GPT-2, trained on other texts than those prepared."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=16384,
        special_tokens=["<pad>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(messages([0], 4000), trainer)
    inner.save(str(path))


def tokenizer(path: str) -> transformers.PreTrainedTokenizerFast:
    """As written, with a template."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=path,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )


def model(vocab: int) -> transformers.PreTrainedModel:
    """The smallest Qwen2."""
    config = transformers.Qwen2Config(
        vocab_size=vocab,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=None,
    )
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    made.config._name_or_path = "smallest"
    return made


def digest(rows: Dataset) -> str:
    """Of all ids and where one row ends."""
    found = hashlib.sha256()
    for row in rows.with_format("numpy")["input_ids"]:
        found.update(np.asarray(row, dtype=np.int64).tobytes() + b"|")
    return found.hexdigest()


def setup(request: dict[str, Any]) -> protocol.Round:
    """A round prepares `rows` conversations drawn from (seed, round)."""
    library = protocol.begin(request)
    disable_progress_bars()

    def run(number: int) -> dict[str, Any]:
        rows = conversations(request["seed"], number, request["rows"])
        taught = tokenizer(request["tokenizer"])
        tiny = model(len(taught))
        with tempfile.TemporaryDirectory() as folder:
            settings = library.SFTConfig(folder, use_cpu=True, bf16=False, report_to="none")

            def build() -> Any:
                return library.SFTTrainer(
                    tiny, args=settings, train_dataset=rows, processing_class=taught
                )

            cpu = time.process_time()
            seconds, trainer = protocol.timed(build)
            cpu = time.process_time() - cpu
        prepared = trainer.train_dataset
        return {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "rows": len(prepared),
            "digest": digest(prepared),
        }

    return run


if __name__ == "__main__":
    protocol.serve(setup)
