"""Learning from one's own best answers: write several to each prompt, keep the best, learn it.

    python examples/scripts/iterative_sft.py --dataset path/to/rt-polarity
    python examples/scripts/iterative_sft.py --smoke        # made-up sentences, to see that it runs

Offline, from a folder of labelled sentences, as ppo.py makes its task: the reward is a classifier's
logit for "positive"; a judge that chose nothing has its say before and after. Each round draws
--n_best_of answers to --batch_size prompts and gives the best to IterativeSFTTrainer.step.
Writes rounds.jsonl and report.md to --output_dir.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import best_of_n
import made_up
import ppo
import torch
from command_line import add_fields
from rich.progress import track
from sentiment_offline import console

from fastrl import (
    AutoModelForCausalLMWithValueHead,
    IterativeSFTConfig,
    IterativeSFTTrainer,
    set_seed,
)


@dataclass(frozen=True)
class Options:
    dataset: str | None = None  # a folder of *.pos and *.neg
    output_dir: str = "runs/iterative_sft"
    rounds: int = 40
    batch_size: int = 64  # prompts a round
    mini_batch_size: int = 16  # best answers a gradient step
    n_best_of: int = 4
    learning_rate: float = 1e-4
    num_queries: int = 128  # held-out prompts, answered before and after
    lm_epochs: int = 4  # epochs of the language model that it starts from
    seed: int = 0
    smoke: bool = False


def parse(argv: Sequence[str] | None = None) -> Options:
    """Exits with a message on words that cannot be honoured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add_fields(parser, Options, "args", {})
    options = Options(**vars(parser.parse_args(sys.argv[1:] if argv is None else argv)))
    for name in ("rounds", "batch_size", "mini_batch_size", "n_best_of", "num_queries"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if options.smoke:
        return replace(options, rounds=min(options.rounds, 6), num_queries=32, batch_size=32)
    if options.dataset is None:
        parser.error("--dataset must name a folder of *.pos and *.neg, or give --smoke")
    return options


def make_trainer(task: ppo.Task, options: Options) -> IterativeSFTTrainer:
    steps = options.rounds * -(-options.batch_size // options.mini_batch_size)
    args = IterativeSFTConfig(
        options.output_dir,
        per_device_train_batch_size=options.mini_batch_size,
        learning_rate=options.learning_rate,
        max_steps=steps,
        logging_strategy="no",
        gradient_checkpointing=False,
        report_to="none",
        seed=options.seed,
    )
    return IterativeSFTTrainer(task.model, args, processing_class=task.tokenizer)


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    options = parse(argv)
    set_seed(options.seed)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    rows = options.dataset or made_up.reviews(folder / "rows")
    offline = ppo.Options(dataset=rows, smoke=options.smoke, lm_epochs=options.lm_epochs)
    task = ppo.offline_task(offline, options.seed)
    trainer = make_trainer(task, options)
    # The same weights, in the form that the sampler asks for.
    writer = AutoModelForCausalLMWithValueHead.from_pretrained(task.model)
    judged = best_of_n.Options(num_queries=options.num_queries, seed=options.seed)
    found: dict[str, Any] = {}
    shown: dict[str, list[str]] = {}

    def look(name: str) -> None:
        shown[name] = best_of_n.best_texts(writer, task, 1, judged)
        found[name] = best_of_n.figures(shown[name], task, None)

    look("before")
    with (folder / "rounds.jsonl").open("w", encoding="utf-8") as log:
        for number in track(range(options.rounds), "learning", console=console):
            drawn = torch.randint(len(task.rows), (options.batch_size,)).tolist()
            asked = replace(task, test_rows=[task.rows[i] for i in drawn])
            seed = options.seed + number + 1
            these = best_of_n.Options(num_queries=options.batch_size, seed=seed)
            best = best_of_n.best_texts(writer, asked, options.n_best_of, these)
            trainer.step(texts=best)
            reward = sum(task.score(best)) / len(best)
            log.write(json.dumps({"round": number, "reward of the best": reward}) + "\n")
    look("after")
    trainer.save_model(str(folder / "model"))
    text = best_of_n.report(found, shown)
    (folder / "report.md").write_text(text, encoding="utf-8")
    console.print(text, markup=False, soft_wrap=True)
    return found


if __name__ == "__main__":
    main()
