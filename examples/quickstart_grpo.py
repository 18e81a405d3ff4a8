"""The demo's second act: sums and differences, by the library's own SFT and GRPO.

1. `SFTTrainer` trains a two-layer GPT-2 from scratch on homework in which a carry or a borrowed ten
   is forgotten three times in four (37+45=72, 52-17=45).
2. `GRPOTrainer` draws eight answers to each problem and gives 1 for the right one, 0 for any other.
   An answer counts by how much better than the group's mean it is; there is no value model.

What counts is the share of right greedy answers to 300 problems that neither stage ever saw: half
of them sums that carry, half differences that borrow.

    python examples/quickstart_grpo.py            # writes runs/quickstart/grpo/
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar as disable_preparing_bar
from homework import (
    EVAL_SEED,
    build_tokenizer,
    console,
    marked,
    progress_bar,
    read_reply,
    small_gpt2,
)
from rich.table import Table
from transformers import (
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)
from transformers.utils.logging import disable_progress_bar

from fastrl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer, set_seed
from fastrl.cli.curves import save_curves
from fastrl.cli.plot import curves_of

FORGETS = 0.75
KINDS = ("carries", "borrows")
HELD_OUT = 150  # problems of each kind
ANSWER_TOKENS = 4  # three digits and the end mark
FIGURES = {
    "reward (share of right answers)": "reward",
    "groups that agree (no gradient)": "frac_reward_zero_std",
    "entropy (nats a token)": "entropy",
    "gradient norm": "grad_norm",
}


# --------------------------------------------------------------------------- the task
@dataclass(frozen=True)
class Problem:
    """`left + right` or `left - right`, both of two digits; in the act all carry or borrow."""

    left: int
    sign: str
    right: int

    @property
    def prompt(self) -> str:
        return f"{self.left}{self.sign}{self.right}="

    @property
    def answer(self) -> int:
        return self.left + self.right if self.sign == "+" else self.left - self.right

    @property
    def kind(self) -> str:
        """Whether the ones digits carry, borrow, or do neither."""
        ones, others = self.left % 10, self.right % 10
        if self.sign == "+":
            return "carries" if ones + others >= 10 else "neither"
        return "borrows" if ones < others else "neither"

    def homework(self, rng: random.Random) -> str:
        """An answer as a careless pupil writes it."""
        if rng.random() >= FORGETS:
            return str(self.answer)
        return str(self.answer - 10 if self.sign == "+" else self.answer + 10)


def split_problems() -> tuple[list[Problem], list[Problem]]:
    """(for training, to evaluate), of each kind alike many, alike for every seed."""
    numbers = range(10, 100)
    every = [Problem(a, s, b) for a, s, b in product(numbers, "+-", numbers) if s == "+" or a >= b]
    rng = random.Random(EVAL_SEED)
    rng.shuffle(every)
    kinds = [[each for each in every if each.kind == kind] for kind in KINDS]
    fewest = min(map(len, kinds))
    training = [each for kind in kinds for each in kind[HELD_OUT:fewest]]
    held_out = [each for kind in kinds for each in kind[:HELD_OUT]]
    rng.shuffle(training)
    rng.shuffle(held_out)
    return training, held_out


def exact(completions: list[str], answer: list[int], **columns: Any) -> list[float]:
    """1 for the right number and nothing else, 0 for all other replies."""
    return [float(text == str(number)) for text, number in zip(completions, answer, strict=True)]


# --------------------------------------------------------------------------- what is shown
class Bar(TrainerCallback):
    """A progress bar with the metric last logged."""

    def __init__(self, name: str, metric: str) -> None:
        self._name, self._metric = name, metric

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = progress_bar()
        self._task = self._bar.add_task(self._name, total=state.max_steps, live="")
        self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **kwargs: Any
    ) -> None:
        if self._metric in logs:
            self._bar.update(self._task, live=f"{self._metric} [bold]{logs[self._metric]:.3f}[/]")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.stop()


def show_samples(problems: Sequence[Problem], before: list[str], after: list[str]) -> None:
    table = Table(title="unseen problems, the likeliest answer to each", title_justify="left")
    for heading in ("problem", "before GRPO", "after GRPO"):
        table.add_column(heading, justify="right")
    for problem, *replies in zip(problems, before, after, strict=True):
        right = str(problem.answer)
        table.add_row(problem.prompt, *[marked(reply, reply == right) for reply in replies])
    console.print(table)


@torch.no_grad()
def answer(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, problems: Sequence[Problem]
) -> list[str]:
    """The greedy reply to each."""
    batch = tokenizer([each.prompt for each in problems], return_tensors="pt").to(model.device)
    model.eval()
    ids = model.generate(**batch, do_sample=False, max_new_tokens=ANSWER_TOKENS)
    return [read_reply(tokenizer, row) for row in ids[:, batch.input_ids.shape[1] :]]


def evaluate(
    when: str,
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
) -> tuple[float, list[str]]:
    """(share of right answers, replies), the share printed, and that of each kind."""
    replies = answer(model, tokenizer, problems)
    right = [reply == str(each.answer) for each, reply in zip(problems, replies, strict=True)]
    share = sum(right) / len(right)
    kinds = {
        kind: [yes for each, yes in zip(problems, right, strict=True) if each.kind == kind]
        for kind in KINDS
    }
    parts = ", ".join(f"{kind} {sum(marks) / len(marks):.2f}" for kind, marks in kinds.items())
    console.print(
        f"accuracy {when} GRPO: [bold]{share:.3f}[/] ({len(problems)} unseen problems; {parts})"
    )
    return share, replies


# --------------------------------------------------------------------------- the two stages
def train(trainer: Trainer) -> GPT2LMHeadModel:
    """The trained model."""
    trainer.remove_callback(PrinterCallback)  # the bar says enough
    trainer.train()
    return trainer.accelerator.unwrap_model(trainer.model)


def shared(seed: int) -> dict[str, Any]:
    """Arguments of both trainers."""
    return {
        "seed": seed,
        "adam_beta2": 0.98,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "bf16": False,
    }


def pretrain(
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    steps: int,
    seed: int,
    folder: Path,
) -> GPT2LMHeadModel:
    """A GPT-2 from scratch that writes answers as the homework has them."""
    rng = random.Random(seed)
    rows = [{"prompt": each.prompt, "completion": each.homework(rng)} for each in problems]
    args = SFTConfig(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=128,
        learning_rate=3e-3,
        warmup_steps=steps // 10,
        logging_steps=max(1, steps // 20),
        **shared(seed),
    )
    trainer = SFTTrainer(
        GPT2LMHeadModel(small_gpt2(tokenizer)),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Bar("SFT", "loss")],
    )
    return train(trainer)


def lift(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    steps: int,
    seed: int,
    folder: Path,
) -> GPT2LMHeadModel:
    """GRPO proper; of the homework nothing is left but the problems."""
    args = GRPOConfig(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=256,
        num_generations=8,
        max_completion_length=ANSWER_TOKENS,
        learning_rate=1e-3,
        warmup_steps=steps // 10,
        logging_steps=max(1, steps // 40),
        **shared(seed),
    )
    trainer = GRPOTrainer(
        model,
        reward_funcs=exact,
        args=args,
        train_dataset=Dataset.from_list(
            [{"prompt": each.prompt, "answer": each.answer} for each in problems]
        ),
        processing_class=tokenizer,
        callbacks=[Bar("GRPO", "reward")],
    )
    return train(trainer)


def run(folder: Path, seed: int = 0, sft_steps: int = 400, steps: int = 300) -> tuple[float, float]:
    """The act: trains, prints, writes logs, curves and model; (accuracy before, after)."""
    started = time.perf_counter()
    disable_progress_bar()
    disable_preparing_bar()
    set_seed(seed)
    tokenizer = build_tokenizer("0123456789+-=")
    problems, unseen = split_problems()
    model = pretrain(tokenizer, problems, sft_steps, seed, folder / "sft")
    before, replies_before = evaluate("before", model, tokenizer, unseen)
    model = lift(model, tokenizer, problems, steps, seed, folder)
    after, replies_after = evaluate("after", model, tokenizer, unseen)
    model.save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    show_samples(unseen[:8], replies_before[:8], replies_after[:8])
    curves = curves_of(folder, list(FIGURES.values()))
    save_curves(
        folder / "curves.png",
        "GRPO on sums and differences",
        {title: curves[key] for title, key in FIGURES.items()},
        note=f"right answers to {len(unseen)} unseen problems: {before:.1%} before, "
        f"{after:.1%} after",
        axis_label="optimizer step",
    )
    seconds = time.perf_counter() - started
    console.print(f"{before:.3f} → [bold green]{after:.3f}[/] in {seconds:.0f} s; see {folder}/")
    return before, after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of weights, homework and sampling")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/quickstart/grpo"))
    parser.add_argument("--sft-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=300, help="of GRPO")
    options = parser.parse_args()
    torch.set_num_threads(1)  # matrices this small lose more to waiting than a second core gives
    run(options.output_dir, options.seed, options.sft_steps, options.steps)


if __name__ == "__main__":
    main()
