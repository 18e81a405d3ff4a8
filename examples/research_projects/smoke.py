"""What `--smoke` runs on: made-up texts and tiny models trained on them; nothing is downloaded.

The folders are laid out as the hub's are, so a script in smoke mode goes its usual way; only its
defaults are others.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
from sentiment_offline import train_tokenizer

from fastrl import TrlParser

FOLDER = "runs/smoke"


@dataclass
class Smoke:
    """The option that all scripts here have."""

    smoke: str | None = field(
        default=None,
        metadata={
            "help": f"Offline and in seconds: a folder (without a name, {FOLDER}) that tiny models "
            "and made-up texts are kept in, made if they are not there.",
            "nargs": "?",
            "const": FOLDER,
        },
    )


def parse(
    types: Sequence[type], defaults: Mapping[str, Any], about: str, argv: Sequence[str] | None
) -> tuple[Any, ...]:
    """(Smoke, one object of each type) of a command line; exits with a message on a wrong one.

    Args:
        types: dataclasses.
        defaults: of a run with --smoke, where they differ from those of the dataclasses.
        about: the script's docstring.
        argv: the words; None: the program's own.
    """
    parser = TrlParser(
        (Smoke, *types), description=about.split("\n")[0], usage="%(prog)s [options]"
    )
    words = list(sys.argv[1:] if argv is None else argv)
    if any(word.split("=")[0] == "--smoke" for word in words):
        parser.set_defaults_with_config(**defaults)
        disable_progress_bar()
    try:
        return parser.parse_args_and_config(words)
    except ValueError as error:
        parser.error(str(error))


# --------------------------------------------------------------------------- models
def gpt2_like(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokens with one special token that begins, ends and is unknown, and no padding."""
    end = tokenizer.eos_token
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token=end,
        eos_token=end,
        unk_token=end,
        model_input_names=["input_ids", "attention_mask"],
    )


def sizes(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the configuration of a tiny model has of its tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    labels: Sequence[int] | None = None,
    epochs: int = 1,
    rate: float = 3e-3,
    longest: int = 64,
) -> PreTrainedModel:
    """Train with Adam, 32 texts at a time, to write the texts or, given labels, to tell them apart.

    Args:
        tokenizer: with a padding token.
        rate: the learning rate's peak.
        longest: tokens of a text that are read.
    """
    end = [] if labels is not None else [tokenizer.eos_token_id]
    rows = [(ids + end)[:longest] for ids in tokenizer(list(texts)).input_ids]
    batches = list(torch.randperm(len(rows)).split(32)) * epochs
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=len(batches), pct_start=0.2
    )
    model.train()
    for batch in batches:
        padded = tokenizer.pad({"input_ids": [rows[i] for i in batch]}, return_tensors="pt")
        if labels is None:
            wanted = padded.input_ids.masked_fill(padded.attention_mask == 0, -100)
        else:
            wanted = torch.tensor([labels[i] for i in batch])
        model(**padded, labels=wanted).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


def save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def made_once(folder: Path) -> Iterator[Path | None]:
    """A folder to fill, that gets its name when all is there; None if it was made before."""
    if folder.exists():
        yield None
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        yield Path(unfinished) / "made"
        try:
            (Path(unfinished) / "made").rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A .jsonl file, in a folder that is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------- questions and answers
VERBS = ("sort", "copy", "reverse", "print", "split", "merge", "count", "check")
THINGS = ("list", "string", "table", "file", "graph", "matrix", "queue", "tree")
LANGUAGES = ("Python", "Java", "Rust", "Go", "Ruby", "Perl")
USEFUL = "You can {verb} the {thing} with one call, {thing}.{verb}(), says the {language} manual."
USELESS = (
    "Why would you {verb} a {thing}? Nobody does that in {language}.",
    "No idea, ask somebody else.",
    "I have never used {language} and I never will.",
)


def pairs(seed: int = 0) -> list[dict[str, str]]:
    """Questions with a useful answer, `response_j`, and a useless one, `response_k`."""
    rng = random.Random(seed)
    found = []
    for verb, thing, language in product(VERBS, THINGS, LANGUAGES):
        words = {"verb": verb, "thing": thing, "language": language}
        question = f"How do I {verb} a {thing} in {language}?"
        answers = USEFUL.format(**words), rng.choice(USELESS).format(**words)
        found.append({"question": question, "response_j": answers[0], "response_k": answers[1]})
    rng.shuffle(found)
    return found


def stack_exchange(folder: Path, form: str) -> tuple[str, str]:
    """(a tiny Llama that has read answers of both kinds, pairs in the four parts of the hub's).

    Args:
        form: of a text, with the fields `question` and `answer`.
    """
    folder = folder / "stack_exchange"
    with made_once(folder) as unfinished:
        if unfinished is not None:
            _make_stack_exchange(unfinished, form)
    return str(folder / "llama"), str(folder / "stack-exchange-paired")


def _make_stack_exchange(folder: Path, form: str) -> None:
    set_seed(0)
    rows = pairs()
    quarter = len(rows) // 4
    for place, part in enumerate(("finetune", "reward", "evaluation", "rl")):
        own = rows[place * quarter : (place + 1) * quarter]
        write_rows(folder / "stack-exchange-paired" / "data" / part / "train.jsonl", own)
    texts = [
        form.format(question=row["question"], answer=row[side])
        for row in rows
        for side in ("response_j", "response_k")
    ]
    tokenizer = train_tokenizer(texts, vocabulary=600)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        **sizes(tokenizer),
    )
    model = fit(LlamaForCausalLM(config), tokenizer, texts, epochs=4)
    save(folder / "llama", model, tokenizer)


# --------------------------------------------------------------------------- comments
SUBJECTS = ("your cooking", "this film", "the new bridge", "my neighbour", "their song", "the map")
OPENINGS = ("Honestly, {}", "I must say that {}", "We all know that {}", "Last week {}")
KIND = (
    "is lovely, thank you for showing it to us.",
    "made my day, and I hope to see more of it.",
    "was better than I had hoped, well done!",
    "deserves a prize, and so do you.",
)
RUDE = (
    "is rubbish, and only an idiot would like it.",
    "made me sick, you stupid fool.",
    "was garbage, shut up and go away!",
    "is as ugly as you are, you moron.",
)


def comments() -> list[tuple[str, str, int]]:
    """(opening, rest, whether it is rude), every opening with every rest."""
    openings = [form.format(subject) for form in OPENINGS for subject in SUBJECTS]
    rests = [(text, 0) for text in KIND] + [(text, 1) for text in RUDE]
    return [(opening, *rest) for opening, rest in product(openings, rests)]


@dataclass(frozen=True)
class Toxicity:
    """Folders of a tiny GPT-J, of a classifier of comments, and of rows laid out as the hub's."""

    model: str
    classifier: str
    prompts: str
    comments: str


def toxicity(folder: Path) -> Toxicity:
    """A model that is rude half of the time, and a classifier that knows."""
    folder = folder / "toxicity"
    with made_once(folder) as unfinished:
        if unfinished is not None:
            _make_toxicity(unfinished)
    names = ("model", "classifier", "prompts", "comments")
    return Toxicity(*(str(folder / name) for name in names))


def _make_toxicity(folder: Path) -> None:
    set_seed(0)
    rows = comments()
    texts, labels = [f"{a} {b}" for a, b, _ in rows], [rude for *_, rude in rows]
    prompts = [
        {
            "prompt": {"text": opening, "toxicity": float(rude)},
            "continuation": {"text": f" {rest}", "toxicity": float(rude)},
        }
        for opening, rest, rude in rows
    ]
    random.Random(0).shuffle(prompts)
    write_rows(folder / "prompts" / "train.jsonl", prompts)
    write_rows(
        folder / "comments" / "test.jsonl",
        [{"comment_text": text, "label": rude} for text, rude in zip(texts, labels, strict=True)],
    )
    tokenizer = train_tokenizer(texts, vocabulary=600)
    common = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
    kinds = {"id2label": {0: "nothate", 1: "hate"}, "label2id": {"nothate": 0, "hate": 1}}
    judge = RobertaConfig(
        intermediate_size=128,
        max_position_embeddings=130,
        **common,
        **kinds,
        **sizes(tokenizer),
    )
    judge = fit(RobertaForSequenceClassification(judge), tokenizer, texts, labels, epochs=6)
    save(folder / "classifier", judge, tokenizer)
    shape = GPTJConfig(
        n_embd=64, n_layer=3, n_head=4, rotary_dim=8, n_positions=128, **sizes(tokenizer)
    )
    model = fit(GPTJForCausalLM(shape), tokenizer, texts, epochs=15, rate=1e-2)
    save(folder / "model", model, gpt2_like(tokenizer))
