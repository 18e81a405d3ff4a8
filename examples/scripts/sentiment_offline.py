"""The sentiment task from a folder of labelled sentences: nothing is downloaded.

A folder holds `*.pos` and `*.neg`, one sentence a line (e.g. the film reviews of Pang & Lee 2005).
From them come a tokenizer, a small language model that writes such sentences (a GPT-2, a Falcon
with ALiBi or a Llama), the classifier that PPO is rewarded by, and a judge: a second classifier of
the same kind, trained on other sentences, that PPO never sees.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

console = Console()
BUCKETS = 1 << 17  # hashed features of a classifier
WIDTH, LAYERS, HEADS, LONGEST = 128, 4, 4, 96  # of a language model


@dataclass(frozen=True)
class Review:
    text: str
    positive: bool


@dataclass(frozen=True)
class Splits:
    """Disjoint thirds of the reviews: for the reward, for the judge, and to hold out (a tenth)."""

    reward: list[Review]
    judge: list[Review]
    held_out: list[Review]


def read_reviews(folder: Path, seed: int = 0) -> Splits:
    """All sentences of `folder/*.pos` and `folder/*.neg`, shuffled and split; stray bytes replaced.

    Raises:
        FileNotFoundError: if the folder has no such files.
    """
    reviews = []
    for suffix in ("pos", "neg"):
        for file in sorted(folder.glob(f"*.{suffix}")):
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            reviews += [Review(line.strip(), suffix == "pos") for line in lines if line.strip()]
    if len({review.positive for review in reviews}) < 2:
        raise FileNotFoundError(f"{folder} holds no *.pos and *.neg files of one sentence a line")
    random.Random(seed).shuffle(reviews)
    tenth = len(reviews) // 10
    half = tenth + (len(reviews) - tenth) // 2
    return Splits(reviews[tenth:half], reviews[half:], reviews[:tenth])


def _features(text: str) -> list[int]:
    """Hashed words and word pairs; Python's own string hash is salted, so this is a fixed one."""
    words = text.split()
    pairs = [f"{a} {b}" for a, b in pairwise(words)]
    indices = []
    for feature in [*words, *pairs]:
        value = 2166136261  # FNV-1a, 32 bits
        for byte in feature.encode():
            value = (value ^ byte) * 16777619 & 0xFFFFFFFF
        indices.append(value % BUCKETS)
    return indices or [0]


class Classifier(torch.nn.Module):
    """Logistic regression on words and word pairs; `forward` gives logits, positive above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.EmbeddingBag(BUCKETS, 1, mode="sum")
        torch.nn.init.zeros_(self.weights.weight)

    def forward(self, texts: list[str]) -> torch.Tensor:
        rows = [_features(text) for text in texts]
        starts = torch.tensor([0, *(len(row) for row in rows[:-1])]).cumsum(0)
        flat = torch.tensor([index for row in rows for index in row])
        lengths = torch.tensor([len(row) for row in rows])
        return self.weights(flat, starts)[:, 0] / lengths.sqrt()

    @torch.no_grad()
    def accuracy(self, reviews: list[Review]) -> float:
        positive = self([review.text for review in reviews]) > 0
        return (positive == torch.tensor([r.positive for r in reviews])).float().mean().item()


def train_classifier(reviews: list[Review], seed: int, epochs: int = 12) -> Classifier:
    """Fit by Adam with weight decay; a few seconds."""
    torch.manual_seed(seed)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.5)
    for _ in range(epochs):
        for rows in torch.randperm(len(reviews)).split(256):
            chosen = [reviews[i] for i in rows]
            labels = torch.tensor([float(review.positive) for review in chosen])
            loss = binary_cross_entropy_with_logits(model([r.text for r in chosen]), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def train_tokenizer(texts: list[str], vocabulary: int = 4096) -> PreTrainedTokenizerFast:
    """Byte-pair encoding learnt from the texts, with a padding and an end token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        model_input_names=["input_ids", "attention_mask"],
    )


def _gpt2(common: dict[str, Any]) -> PreTrainedConfig:
    sizes = {"n_positions": LONGEST, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
    return GPT2Config(**common, **sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


def _falcon(common: dict[str, Any]) -> PreTrainedConfig:
    """In the manner of falcon-rw: ALiBi in place of positions, a key and a value for each head."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    manner = {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
    return FalconConfig(**common, **sizes, **manner, max_position_embeddings=LONGEST)


def _llama(common: dict[str, Any]) -> PreTrainedConfig:
    """Its three matrices of a gated layer are together as large as the others' two."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    sizes |= {"intermediate_size": 8 * WIDTH // 3, "max_position_embeddings": LONGEST}
    return LlamaConfig(**common, **sizes, tie_word_embeddings=True)


FAMILIES = {"gpt2": _gpt2, "falcon": _falcon, "llama": _llama}


def train_language_model(
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    seed: int,
    epochs: int,
    family: str = "gpt2",
) -> PreTrainedModel:
    """A four-layer model trained from scratch to write sentences like the given ones."""
    torch.manual_seed(seed)
    common = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = AutoModelForCausalLM.from_config(FAMILIES[family](common))
    rows = [[*tokenizer(text).input_ids[:63], tokenizer.eos_token_id] for text in texts]
    rows.sort(key=len)  # batches of like lengths pad little
    batches = [rows[i : i + 32] for i in range(0, len(rows), 32)]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, total_steps=epochs * len(batches), pct_start=0.1
    )
    order = random.Random(seed)
    steps = [batch for _ in range(epochs) for batch in order.sample(batches, len(batches))]
    total = 0.0
    for batch in track(steps, "language model", console=console):
        padded = tokenizer.pad({"input_ids": batch}, return_tensors="pt")
        labels = padded.input_ids.masked_fill(padded.attention_mask == 0, -100)
        loss = model(**padded, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        total = 0.98 * total + 0.02 * loss.item() if total else loss.item()
    console.print(f"language model: cross-entropy {total:.2f} nats a token on its training texts")
    return model.eval()


def kept_language_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    seed: int,
    epochs: int,
    family: str,
) -> PreTrainedModel:
    """As `train_language_model`, but read from the folder if it was made before of the same texts.

    Random numbers drawn afterwards are the same either way.
    """
    vocabulary = sorted(tokenizer.get_vocab().items())
    made_of = json.dumps([texts, vocabulary, seed, epochs, family, WIDTH, LAYERS, HEADS])
    kept = folder / f"{family}-{seed}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    if kept.is_dir():
        console.print(f"language model: read from {kept}")
        model = AutoModelForCausalLM.from_pretrained(kept)
        torch.set_rng_state(torch.load(kept / "random.pt"))
        return model.eval()
    model = train_language_model(tokenizer, texts, seed, epochs, family)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        whole = Path(unfinished) / "model"
        model.save_pretrained(whole)
        torch.save(torch.get_rng_state(), whole / "random.pt")
        try:
            whole.rename(kept)
        except OSError:
            if not kept.is_dir():  # else another run with the same seed was faster
                raise
    return model


def diversity(texts: list[str], n: int) -> float:
    """distinct-n (Li et al. 2016): different n-grams of words over all of them, in all texts."""
    grams = []
    for text in texts:
        words = text.split()
        grams += list(zip(*(words[i:] for i in range(n)), strict=False))
    return len(set(grams)) / max(1, len(grams))


@torch.no_grad()
def judge_positive(judge: Classifier, texts: list[str]) -> float:
    """Mean probability that the judge gives to `positive`."""
    return logsigmoid(judge(texts)).exp().mean().item()
