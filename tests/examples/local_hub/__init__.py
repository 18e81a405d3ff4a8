"""A hub in a folder: tiny models and film reviews under the names that the guides' scripts load.

`from_pretrained("lvwerra/gpt2-imdb")` and `load_dataset("imdb")` look for a folder of that name
before they ask a hub, so with this one as working directory a notebook runs as it is.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from pathlib import Path

from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    set_seed,
)

sys.path.append(str(Path(__file__).resolve().parents[3] / "examples" / "research_projects"))
import smoke
from sentiment_offline import train_tokenizer

ROOT = Path(__file__).resolve().parents[3]
REVIEWS = Path(os.environ.get("RT_POLARITY", ROOT.parent / "shared" / "data" / "rt-polarity"))

PRAISE = ("a warm and funny film", "the cast is a joy to watch", "moving from start to end")
BLAME = ("a dull and tired film", "the plot is a mess", "boring from start to end")
SENTENCES = 4  # of a review, so that it is longer than 200 characters
LANGUAGE_MODELS = ("gpt2", "lvwerra/gpt2-imdb", "lvwerra/gpt2-imdb-pos-v2")
CLASSIFIER = "lvwerra/distilbert-imdb"
DATASETS = ("imdb", "stanfordnlp/imdb")


def sentences(most: int) -> tuple[list[str], list[int]]:
    """Sentences of film reviews, real ones if they are there, and 1 where they praise."""
    found = []
    for label, (suffix, made_up) in enumerate((("neg", BLAME), ("pos", PRAISE))):
        file = REVIEWS / f"rt-polarity.{suffix}"
        if file.is_file():
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        else:
            ending = "minutes of it , and so said the man beside me ."
            lines = [f"{text} , all {n} {ending}" for n in range(400) for text in made_up]
        found += [(line.strip(), label) for line in lines[: most // 2]]
    random.Random(0).shuffle(found)
    return [text for text, _ in found], [label for _, label in found]


def reviews(texts: list[str], labels: list[int], number: int) -> list[dict]:
    """Rows `text` and `label`, each of several sentences that agree."""
    of = [[text for text, own in zip(texts, labels, strict=True) if own == k] for k in (0, 1)]
    rows = []
    for row in range(number):
        label = row % 2
        start = row // 2 * SENTENCES
        own = [of[label][(start + n) % len(of[label])] for n in range(SENTENCES)]
        rows.append({"text": " ".join(own), "label": label})
    return rows


def make(folder: Path, rows: int = 144, used: int = 800) -> Path:
    """Write everything to the folder; some seconds.

    Args:
        rows: reviews of the dataset.
        used: sentences that the models and the tokenizer learn from.
    """
    set_seed(0)
    texts, labels = sentences(used)
    tokenizer = train_tokenizer(texts, vocabulary=1000)
    sizes = smoke.sizes(tokenizer)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=128, **sizes)
    writer = smoke.fit(GPT2LMHeadModel(config), tokenizer, texts, rate=1e-2, longest=32)
    writer.config.pad_token_id = writer.generation_config.pad_token_id = None
    for name in LANGUAGE_MODELS:
        smoke.save(folder / name, writer, smoke.gpt2_like(tokenizer))
    kinds = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
    config = DistilBertConfig(
        dim=32,
        n_layers=1,
        n_heads=2,
        hidden_dim=64,
        **kinds,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    judge = DistilBertForSequenceClassification(config)
    judge = smoke.fit(judge, tokenizer, texts, labels, epochs=4, rate=1e-2, longest=32)
    smoke.save(folder / CLASSIFIER, judge, tokenizer)
    lines = [json.dumps(row) for row in reviews(texts, labels, rows)]
    for name in DATASETS:
        (folder / name).mkdir(parents=True)
        (folder / name / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def linked(hub: Path, folder: Path) -> Path:
    """A working directory that sees the hub; what is written there stays out of it."""
    for name in (*LANGUAGE_MODELS, CLASSIFIER, *DATASETS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(hub / name, folder / name, copy_function=os.link)
    return folder
