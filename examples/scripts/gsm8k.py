"""GSM8K from a folder, and small language models trained on it: nothing is downloaded.

The folder holds the school problems of Cobbe et al. (2021, arXiv 2110.14168): `train.jsonl` and
`test.jsonl` with a person's solutions, and `model_solutions.jsonl`, four solutions to each test
problem by models of theirs, each marked right or wrong by its final number.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import processes
import torch
from datasets import Dataset
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    set_seed,
)

from fastrl import ModelConfig, RichProgressCallback
from fastrl.cli.curves import save_curves
from fastrl.cli.plot import curves_of

console = Console()
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 4096
SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SMALL = {  # of a smoke run
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
HELD_OUT = 256  # rows to evaluate on, so that it takes seconds
NEW_TOKENS = 160  # of a sample


# --------------------------------------------------------------------------- the data
def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file. Raises SystemExit if there is none."""
    if not file.is_file():
        raise SystemExit(f"{file} is missing: --dataset names the folder of GSM8K's .jsonl files")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def asked(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def said(solution: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": solution}]


def problems(folder: Path, split: str) -> Dataset:
    """Columns `prompt` and `completion`; the last line is `A: 18`, as the models write it."""
    rows = read(folder / f"{split}.jsonl")
    return Dataset.from_list(
        [
            {
                "prompt": asked(row["question"]),
                "completion": said(row["answer"].replace("#### ", "A: ")),
            }
            for row in rows
        ]
    )


def solved(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Problems with all their solutions: (to train on, a fifth to hold out), for every seed."""
    found = []
    for row in read(folder / "model_solutions.jsonl"):
        given = [value for value in row.values() if isinstance(value, dict)]
        marks = {each["solution"]: bool(each["is_correct"]) for each in given}
        right = [text for text, correct in marks.items() if correct]
        wrong = [text for text, correct in marks.items() if not correct]
        own = {"question": row["question"], "person": [row["ground_truth"]]}
        found.append({**own, "models": right, "wrong": wrong})
    random.Random(0).shuffle(found)
    fifth = len(found) // 5
    return found[fifth:], found[:fifth]


def pairs(rows: list[dict[str, Any]], writers: Sequence[str] = ("person", "models")) -> Dataset:
    """Each right solution of a problem by `writers` beside each wrong one, in a random order."""
    found = [
        {"prompt": asked(row["question"]), "chosen": said(good), "rejected": said(bad)}
        for row in rows
        for writer in writers
        for good, bad in product(row[writer], row["wrong"])
    ]
    random.Random(0).shuffle(found)
    return Dataset.from_list(found)


def pairs_by_writer(rows: list[dict[str, Any]]) -> dict[str, Dataset]:
    """Held-out pairs, apart by who wrote the right solution: `person`, `models`."""
    return {writer: first(pairs(rows, [writer])) for writer in ("person", "models")}


def marked(rows: list[dict[str, Any]]) -> Dataset:
    """Each solution by itself, in a random order: `prompt`, `completion`, `label`."""
    found = [
        {"prompt": asked(row["question"]), "completion": said(text), "label": writer != "wrong"}
        for row in rows
        for writer in ("person", "models", "wrong")
        for text in row[writer]
    ]
    random.Random(0).shuffle(found)
    return Dataset.from_list(found)


def first(rows: Dataset) -> Dataset:
    """As many as are evaluated on."""
    return rows.select(range(min(HELD_OUT, len(rows))))


# --------------------------------------------------------------------------- tokenizer and model
def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-pair encoding learnt from the texts, each digit a token, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def new_model(folder: Path, rows: Dataset, seed: int, small: bool = False) -> str:
    """A tokenizer learnt from the rows and an untrained Qwen2 of four layers × 192, saved."""

    def make() -> None:
        texts = [row[part][0]["content"] for row in rows for part in ("prompt", "completion")]
        tokenizer = train_tokenizer(texts)
        config = Qwen2Config(
            vocab_size=len(tokenizer),
            **(SMALL if small else SHAPE),
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        Qwen2ForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    set_seed(seed)
    processes.once(make)
    return str(folder)


# --------------------------------------------------------------------------- a run
def loading(model_args: ModelConfig) -> dict[str, Any]:
    """Keywords of `from_pretrained` that the model options stand for."""
    return {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation}


@torch.no_grad()
def answers(trainer: Any, questions: list[str], tokens: int) -> list[str]:
    """A solution to each, sampled at temperature 0.7; the noise is the same at every call."""
    tokenizer, model = trainer.processing_class, trainer.accelerator.unwrap_model(trainer.model)
    was_training = model.training
    model.eval()
    texts = []
    with torch.random.fork_rng():
        torch.manual_seed(2024)
        for question in questions:
            ids = tokenizer.apply_chat_template(
                asked(question), add_generation_prompt=True, return_dict=True, return_tensors="pt"
            ).to(model.device)
            made = model.generate(
                **ids, do_sample=True, temperature=0.7, top_k=0, max_new_tokens=tokens
            )
            texts.append(tokenizer.decode(made[0, ids["input_ids"].shape[1] :], True))
    model.train(was_training)
    return texts


def train(trainer: Any, names: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    """Train with a progress bar and save.

    Args:
        trainer: any of them.
        names: what to call a metric -> the metric.

    Returns:
        name -> its value on the held-out rows (before, after).
    """
    trainer.add_callback(RichProgressCallback())
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    trainer.save_model()
    return {name: (before[f"eval_{key}"], after[f"eval_{key}"]) for name, key in names.items()}


def train_with_answers(
    trainer: Any, names: Mapping[str, str], questions: list[str], smoke: bool = False
) -> tuple[dict[str, tuple[float, float]], list[dict[str, str]]]:
    """(figures as `train` gives them, the model's answers to some questions before and after)."""
    tokens = 8 if smoke else NEW_TOKENS
    texts_before = answers(trainer, questions, tokens)
    figures = train(trainer, names)
    texts = zip(questions, texts_before, answers(trainer, questions, tokens), strict=True)
    return figures, [{"problem": q, "before": old, "after": new} for q, old, new in texts]


def rounded(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # no -0.000


def shortened(text: str, longest: int = 300) -> str:
    return text if len(text) <= longest else text[:longest] + " …"


def report(
    folder: Path,
    title: str,
    figures: Mapping[str, tuple[float, float]],
    samples: Sequence[Mapping[str, str]],
    drawn: Sequence[str],
) -> None:
    """Print and write report.md (figures before and after, samples) and curves.png.

    Args:
        folder: of the run.
        title: of the curves.
        figures: name -> (before, after), on held-out rows.
        samples: heading -> text.
        drawn: keys of log.jsonl.
    """
    lines = ["| on held-out rows | before | after |", "|---|---|---|"]
    lines += [
        f"| {name} | {rounded(old)} | {rounded(new)} |" for name, (old, new) in figures.items()
    ]
    for sample in samples:
        lines += [f"\n{heading}:\n```\n{shortened(text)}\n```" for heading, text in sample.items()]
    text = "\n".join(lines) + "\n"
    if not processes.state().is_main_process:
        return
    (folder / "report.md").write_text(text, encoding="utf-8")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    try:
        curves = curves_of(folder, list(drawn))
    except ValueError as error:
        warnings.warn(f"no curves: {error}", stacklevel=2)
        return
    save_curves(folder / "curves.png", title, curves, axis_label="optimizer step")
    console.print(f"report.md, log.jsonl, curves.png and the model are in {folder}/")
