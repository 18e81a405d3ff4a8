"""PPO teaches a model to look things up: questions of TriviaQA and a search in their pages.

    accelerate launch examples/research_projects/tools/triviaqa.py --log_with wandb
    python examples/research_projects/tools/triviaqa.py --smoke

An episode is worth 1 if the right answer stands before its `<submit>`, else 0. The search runs
here: it knows the pages of Wikipedia that come with the questions, and ranks them by BM25.
"""

from __future__ import annotations

import math
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
import smoke
from tool_training import SMOKE, ToolArguments, run, shuffled, tiny_model

from fastrl.train.script_arguments import load

WORDS = 100  # of a passage
PROMPT = """\
Answer each question; look up what you do not know.

Q: Which river flows through the city where Mozart was born?

A: <request><Wiki>Mozart birthplace<call>Wolfgang Amadeus Mozart was born in Salzburg, a city on \
the Salzach ...<response>

Answer: Salzach<submit>

"""
COUNTRIES = ("Arvia", "Belmar", "Corvo", "Dalmor", "Erland", "Fennia", "Gorum", "Halvia")
CITIES = ("Tolm", "Ulby", "Varn", "Wick", "Xanth", "Yorb", "Zell", "Quill")


@dataclass
class ScriptArguments(ToolArguments):
    """The model, the questions and PPO's settings."""

    dataset_name: str = field(
        default="mandarjoshi/trivia_qa",
        metadata={"help": "Hub name or a .jsonl file; `question`, `answer`, `entity_pages`."},
    )
    most_questions: int = field(
        default=1000, metadata={"help": "Questions asked; the search knows their pages."}
    )
    max_tool_reponse: int = field(
        default=400, metadata={"help": "Most characters of a search's result."}
    )


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


class Search:
    """The passage that fits a query best, by BM25 (Robertson and Zaragoza 2009, equation 3.15).

    Args:
        passages: texts.
        saturation, length_weight: its k1 and b.
    """

    def __init__(
        self, passages: Sequence[str], saturation: float = 1.2, length_weight: float = 0.75
    ) -> None:
        self.passages = list(passages)
        self.k1, self.b = saturation, length_weight
        counts = [Counter(words_of(passage)) for passage in self.passages]
        self.lengths = [sum(each.values()) for each in counts]
        self.mean_length = sum(self.lengths) / len(self.lengths)
        self.found: dict[str, list[tuple[int, int]]] = defaultdict(list)  # word -> (passage, times)
        for place, each in enumerate(counts):
            for word, times in each.items():
                self.found[word].append((place, times))

    def __call__(self, query: str) -> str:
        scores: Counter[int] = Counter()
        for word in set(words_of(query)):
            holding = self.found.get(word, [])
            rarity = math.log(1 + (len(self.passages) - len(holding) + 0.5) / (len(holding) + 0.5))
            for place, times in holding:
                long = 1 - self.b + self.b * self.lengths[place] / self.mean_length
                scores[place] += rarity * times * (self.k1 + 1) / (times + self.k1 * long)
        if not scores:
            return "nothing found"
        return self.passages[max(scores, key=lambda place: (scores[place], -place))]


def passages(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The pages of all rows in pieces, each behind its page's title; none twice."""
    pages = {
        title: text
        for row in rows
        for title, text in zip(
            row["entity_pages"]["title"], row["entity_pages"]["wiki_context"], strict=True
        )
    }
    pieces = []
    for title, text in pages.items():
        words = text.split()
        for start in range(0, len(words), WORDS):
            pieces.append(f"{title}: {' '.join(words[start : start + WORDS])}")
    return pieces


def submitted(answers: list[str], targets: list[list[str]]) -> list[torch.Tensor]:
    """1 where one of the names of what is right stands before `<submit>`."""
    rewards = []
    for answer, names in zip(answers, targets, strict=True):
        said, submit, _ = answer.partition("<submit>")
        own = f" {' '.join(words_of(said))} "
        right = bool(submit) and any(f" {' '.join(words_of(name))} " in own for name in names)
        rewards.append(torch.tensor(float(right)))
    return rewards


def made_up(seed: int = 0) -> list[dict[str, Any]]:
    """Questions of the hub's form about countries that are not there."""
    cities = random.Random(seed).sample(CITIES, len(CITIES))
    return [
        {
            "question": f"What is the capital of {country}?",
            "answer": {"normalized_aliases": [city.lower()]},
            "entity_pages": {
                "title": [country],
                "wiki_context": [f"The capital of {country} is {city}."],
            },
        }
        for country, city in zip(COUNTRIES, cities, strict=True)
    ]


def asked(question: str) -> str:
    return f"Q: {question}\n\nA:"


def transcript(rng: random.Random) -> str:
    """Half of the time it is looked up, else guessed; which city it is differs every time."""
    country, city = rng.choice(COUNTRIES), rng.choice(CITIES)
    question = asked(f"What is the capital of {country}?")
    if rng.random() < 0.5:
        return f"{question}\n\nAnswer: {city}<submit>"
    call = f"<request><Wiki>{country}<call>{country}: The capital of {country} is {city}.<response>"
    return f"{question} {call}\n\nAnswer: {city}<submit>"


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Train and save; the mean reward of each step."""
    own = {"output_dir": "runs/triviaqa"}
    offline, args = smoke.parse((ScriptArguments,), {**SMOKE, **own}, __doc__, argv)
    if offline.smoke is not None:
        args.model_name = tiny_model(offline.smoke, "Wiki", transcript)
        rows, prompt = made_up(), ""
    else:
        config = None if Path(args.dataset_name).exists() else "rc"
        data = load(args.dataset_name, config, split="train")
        rows, prompt = list(data.select(range(min(args.most_questions, len(data))))), PROMPT
    questions = [(asked(row["question"]), row["answer"]["normalized_aliases"]) for row in rows]
    tasks = shuffled(questions, args.batch_size, args.seed)
    tools = {"Wiki": Search(passages(rows))}
    more = {"max_turns": 2, "max_tool_reponse": args.max_tool_reponse}
    return run(args, tools, submitted, prompt, tasks, offline.smoke is not None, **more)


if __name__ == "__main__":
    main()
