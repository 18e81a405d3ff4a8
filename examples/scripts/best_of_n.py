"""Best of n: of n answers to a prompt the one that scores highest, without training anything.

Offline, from a folder of labelled sentences (everything is made here):

    python examples/scripts/best_of_n.py --dataset path/to/rt-polarity --n_best_of 16
    python examples/scripts/best_of_n.py --smoke            # made-up sentences, to see that it runs

With a hub, the models of TRL's notebook:

    python examples/scripts/best_of_n.py --n_best_of 4

Prints what a reward says of one answer, of the best of 2, 4, … n, and of a model that PPO has tuned
(--model_name; offline a checkpoint of ppo.py). Offline a judge that chose nothing has its say too.
Writes report.md and summary.json to --output_dir.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import made_up
import old_flags
import ppo
import torch
from command_line import add_fields
from sentiment_offline import console, diversity

from fastrl import AutoModelForCausalLMWithValueHead, BestOfNSampler, PPOConfig, set_seed

TUNED = "lvwerra/gpt2-imdb-pos-v2"  # what --model_name is with a hub


@dataclass(frozen=True)
class Options:
    dataset: str | None = None  # a folder of *.pos and *.neg; None: query_dataset from the hub
    output_dir: str = "runs/best_of_n"
    n_best_of: int = 4
    num_queries: int = 64
    ref_model_name: str = "lvwerra/gpt2-imdb"
    model_name: str | None = None
    query_dataset: str = "stanfordnlp/imdb"
    reward_model: str = "sentiment-analysis:lvwerra/distilbert-imdb"
    lm_epochs: int = 4  # offline: epochs of the language model
    seed: int = 0
    smoke: bool = False  # offline: a few sentences and queries, to see that it runs


def parse(argv: Sequence[str] | None = None) -> Options:
    """Exits with a message on words that cannot be honoured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add_fields(parser, Options, "args", {})
    known = [flag for action in parser._actions for flag in action.option_strings]
    words = old_flags.flat(sys.argv[1:] if argv is None else argv)
    options = Options(**vars(parser.parse_args(old_flags.positive(words, known))))
    if options.n_best_of < 1 or options.num_queries < 1:
        parser.error("--n_best_of and --num_queries must be at least 1")
    if options.dataset or options.smoke:
        return replace(options, num_queries=8) if options.smoke else options
    return options if options.model_name else replace(options, model_name=TUNED)


def make_task(options: Options) -> ppo.Task:
    """Prompts, reference model and reward, as ppo.py has them."""
    if not (options.dataset or options.smoke):
        config = PPOConfig(
            model_name=options.ref_model_name,
            query_dataset=options.query_dataset,
            reward_model=options.reward_model,
        )
        return ppo.hub_task(config, ppo.Options())
    folder = options.dataset or made_up.reviews(Path(options.output_dir) / "rows")
    offline = ppo.Options(dataset=folder, smoke=options.smoke, lm_epochs=options.lm_epochs)
    return ppo.offline_task(offline, options.seed)


def best_texts(model: Any, task: ppo.Task, n: int, options: Options) -> list[str]:
    """The best of n answers to each query, with the query."""
    sampler = BestOfNSampler(
        model, task.tokenizer, task.score, lambda: task.new_tokens, sample_size=n, seed=options.seed
    )
    queries = [row["input_ids"] for row in task.test_rows[: options.num_queries]]
    best = sampler.generate(
        queries,
        do_sample=True,
        top_k=0,
        top_p=1.0,
        pad_token_id=task.tokenizer.pad_token_id,
    )
    return [text for (text,) in best]


def figures(texts: list[str], task: ppo.Task, n: int | None) -> dict[str, float]:
    """What is said of some texts; the KL is that of Stiennon et al. 2020, appendix G.3."""
    scores = torch.tensor(task.score(texts))
    found = {"reward (logit)": scores.mean().item(), "P(positive)": scores.sigmoid().mean().item()}
    if task.judge is not None:
        found["judge P(positive)"] = task.judge(texts)
    found["distinct-2"] = diversity(texts, 2)
    if n is not None:
        found["KL (nats)"] = math.log(n) - (n - 1) / n
    return found


def report(rows: dict[str, dict[str, float]], texts: dict[str, list[str]]) -> str:
    """The figures and the first texts, as Markdown."""
    columns = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [f"{row[column]:.3f}" if column in row else "" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| " + " | ".join(texts) + " |", "|---" * len(texts) + "|"]
    for several in list(zip(*texts.values(), strict=True))[:6]:
        cells = [text.replace("|", "/").replace("\n", " ") for text in several]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    options = parse(argv)
    set_seed(options.seed)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    task = make_task(options)
    reference = AutoModelForCausalLMWithValueHead.from_pretrained(task.model)
    sizes = [2**k for k in range(options.n_best_of.bit_length()) if 2**k < options.n_best_of]
    rows: dict[str, dict[str, float]] = {}
    texts: dict[str, list[str]] = {}
    for n in [*sizes, options.n_best_of]:
        name = "reference" if n == 1 else f"best of {n}"
        texts[name] = best_texts(reference, task, n, options)
        rows[name] = figures(texts[name], task, n)
    if options.model_name is not None:
        tuned = AutoModelForCausalLMWithValueHead.from_pretrained(options.model_name)
        texts["tuned"] = best_texts(tuned, task, 1, options)
        rows["tuned"] = figures(texts["tuned"], task, None)
    shown = {name: texts[name] for name in dict.fromkeys(["reference", *list(texts)[-2:]])}
    text = report(rows, shown)
    (folder / "report.md").write_text(text, encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")
    console.print(text, markup=False, soft_wrap=True)
    return rows


if __name__ == "__main__":
    main()
