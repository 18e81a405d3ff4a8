"""Made-up rows for smoke runs, in the files of GSM8K and of film reviews."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def _write(file: Path, lines: list[str]) -> None:
    """Whole or not at all: several processes may write the same file at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text("\n".join(lines), encoding="utf-8")
    unfinished.replace(file)


def sums(folder: Path, problems: int = 12) -> str:
    """The three files of GSM8K with sums; to each four solutions, one of them right."""
    solved, judged = [], []
    for number in range(3, 3 + problems):
        question = f"Ann has {number} pens and buys 2. How many has she?"
        answer = f"She has {number}+2=<<{number}+2={number + 2}>>{number + 2}.\n#### {number + 2}"
        solved.append(json.dumps({"question": question, "answer": answer}))
        row: dict[str, Any] = {"question": question, "ground_truth": answer}
        for more in range(1, 5):
            text = f"It is {number + more}.\nA: {number + more}"
            row[f"model {more}"] = {"solution": text, "is_correct": more == 2}
        judged.append(json.dumps(row))
    for name, lines in (("train", solved), ("test", solved), ("model_solutions", judged)):
        _write(folder / f"{name}.jsonl", lines)
    return str(folder)


def reviews(folder: Path, number: int = 100) -> str:
    """A `.pos` and a `.neg` file with three times so many sentences each."""
    for suffix, words in (("pos", "warm funny moving"), ("neg", "dull flat boring")):
        lines = [
            f"the film is {word} and it runs for {minutes} minutes"
            for minutes in range(number)
            for word in words.split()
        ]
        _write(folder / f"reviews.{suffix}", lines)
    return str(folder)
