"""The sentiment task from a folder of labelled sentences: nothing is downloaded.

A folder holds `*.pos` and `*.neg`, one sentence a line (e.g. the film reviews of Pang & Lee 2005).
From them come a tokenizer, a small GPT-2 that writes such sentences, the classifier that PPO is
rewarded by, and a judge: a second classifier of the same kind, trained on other sentences, that PPO
never sees.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

console = Console()
BUCKETS = 1 << 17  # hashed features of a classifier


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


def train_language_model(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], seed: int, epochs: int
) -> GPT2LMHeadModel:
    """A four-layer GPT-2 trained from scratch to write sentences like the given ones."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=96,
        n_embd=128,
        n_layer=4,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = GPT2LMHeadModel(config)
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
