"""Two tiny models learn to calculate by reinforcement: a few minutes on a laptop, no download.

The first act is PPO by its classic loop, below; the second, GRPO, is in quickstart_grpo.py.

1. Tokenizer (characters) and a two-layer GPT-2 are built here; nothing is fetched.
2. The model imitates a pile of homework that forgets to carry three times in four (37+45=72).
   It learns to add, and it learns the bad habit: even its likeliest answer is wrong.
3. `PPOTrainer` gives 1 for a right answer and 0 for any other, and the habit goes away.

The score that counts is the share of right answers to 200 sums that neither stage ever saw, sampled
at temperature 1 with a fixed seed, before and after PPO.

    python examples/quickstart.py            # writes runs/quickstart/ and runs/quickstart/grpo/
    python examples/quickstart.py --act ppo --seed 1
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path

import quickstart_grpo
import torch
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
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from fastrl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, set_seed
from fastrl.cli.curves import save_curves

ANSWER_TOKENS = 4  # three digits and the end mark
CHARACTERS = "0123456789+="


# --------------------------------------------------------------------------- the task
@dataclass(frozen=True)
class Sum:
    """`left + right`, both of two digits, the ones digits carrying."""

    left: int
    right: int

    @property
    def prompt(self) -> str:
        return f"{self.left}+{self.right}="

    @property
    def answer(self) -> int:
        return self.left + self.right

    def reward(self, reply: str) -> float:
        """1 for the right number and nothing else, 0 for all other replies."""
        return float(reply == str(self.answer))

    def homework(self, rng: random.Random) -> str:
        """An answer as a careless pupil writes it: three times in four the carry is forgotten."""
        return str(self.answer - 10 if rng.random() < 0.75 else self.answer)


def split_sums() -> tuple[list[Sum], list[Sum]]:
    """All 3,645 sums that carry, split alike for every seed: (for training, 200 to evaluate)."""
    two_digits = range(10, 100)
    sums = [Sum(a, b) for a in two_digits for b in two_digits if a % 10 + b % 10 >= 10]
    random.Random(EVAL_SEED).shuffle(sums)
    return sums[200:], sums[:200]


class Prompts(Dataset):
    """The training sums as rows for `PPOTrainer`'s dataloader."""

    def __init__(self, sums: list[Sum], tokenizer: PreTrainedTokenizerFast) -> None:
        self.rows = [
            {"sum": task, "input_ids": torch.tensor(tokenizer.encode(task.prompt))} for task in sums
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


def collate(rows: list[dict]) -> dict[str, list]:
    return {key: [row[key] for row in rows] for key in rows[0]}


# --------------------------------------------------------------------------- what is shown and kept
@dataclass
class Journal:
    """Writes `log.jsonl` as training goes and keeps the PPO steps for the curves."""

    folder: Path
    steps: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "log.jsonl").write_text("")

    def write(self, **row: object) -> None:
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")

    def ppo_step(self, stats: dict, rewards: list[torch.Tensor]) -> dict[str, float]:
        row = {"reward": torch.stack(rewards).mean().item()}
        row |= {key: float(value) for key, value in stats.items() if getattr(value, "ndim", 0) == 0}
        self.steps.append(row)
        self.write(stage="ppo", step=len(self.steps), **row)
        return row

    def column(self, key: str) -> list[float]:
        return [row[key] for row in self.steps]


def show_samples(sums: list[Sum], before: list[str], after: list[str]) -> None:
    table = Table(title="unseen sums, one sample each", title_justify="left")
    for heading in ("sum", "before PPO", "after PPO"):
        table.add_column(heading, justify="right")
    for task, *replies in zip(sums, before, after, strict=True):
        table.add_row(task.prompt, *[marked(reply, bool(task.reward(reply))) for reply in replies])
    console.print(table)


# --------------------------------------------------------------------------- the three stages
def pretrain(
    tokenizer: PreTrainedTokenizerFast, sums: list[Sum], steps: int, seed: int, journal: Journal
) -> GPT2LMHeadModel:
    """Train a GPT-2 from scratch on homework by plain cross-entropy; only answers are scored."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPT2LMHeadModel(small_gpt2(tokenizer)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    rng = random.Random(seed)
    with progress_bar() as bar:
        task = bar.add_task("pretrain", total=steps, live="")
        for step in range(1, steps + 1):
            pages = rng.choices(sums, k=128)
            lines = [page.prompt + page.homework(rng) + tokenizer.eos_token for page in pages]
            batch = tokenizer(lines, padding=True, return_tensors="pt").to(device)
            labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
            labels[:, : len(pages[0].prompt)] = -100
            logits = model(**batch).logits[:, :-1]
            loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.update(task, advance=1, live=f"loss {loss.item():.3f}")
            if step % 50 == 0:
                journal.write(stage="pretrain", step=step, loss=loss.item())
    return model


@torch.no_grad()
def answer(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, sums: list[Sum]
) -> list[str]:
    """One reply a sum, sampled at temperature 1; the noise is the same at every call."""
    batch = tokenizer([task.prompt for task in sums], return_tensors="pt").to(model.device)
    with torch.random.fork_rng():
        torch.manual_seed(EVAL_SEED)
        ids = model.generate(
            **batch,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            max_new_tokens=ANSWER_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
        )
    return [read_reply(tokenizer, row) for row in ids[:, batch.input_ids.shape[1] :]]


def evaluate(
    when: str,
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    sums: list[Sum],
    journal: Journal,
) -> tuple[float, list[str]]:
    """Mean reward on sums that were never trained on, printed and logged: (reward, replies)."""
    replies = answer(model, tokenizer, sums)
    score = sum(task.reward(reply) for task, reply in zip(sums, replies, strict=True)) / len(sums)
    console.print(f"eval/reward {when} PPO: [bold]{score:.3f}[/] ({len(sums)} unseen sums)")
    journal.write(**{"stage": "eval", "when": when, "eval/reward": score})
    return score, replies


def lift(
    trainer: PPOTrainer, tokenizer: PreTrainedTokenizerFast, passes: int, journal: Journal
) -> None:
    """PPO proper: sample answers, score them, step. This loop is all a PPO script needs."""
    with progress_bar() as bar:
        task = bar.add_task("PPO", total=passes * len(trainer.dataloader), live="")
        for batch in chain.from_iterable(repeat(trainer.dataloader, passes)):
            responses = trainer.generate(
                batch["input_ids"],
                batch_size=len(batch["sum"]),
                return_prompt=False,
                do_sample=True,
                top_k=0,
                max_new_tokens=ANSWER_TOKENS,
                pad_token_id=tokenizer.pad_token_id,
            )
            rewards = [
                torch.tensor(page.reward(read_reply(tokenizer, ids)))
                for page, ids in zip(batch["sum"], responses, strict=True)
            ]
            stats = trainer.step(batch["input_ids"], responses, rewards)
            row = journal.ppo_step(stats, rewards)
            live = f"reward [bold green]{row['reward']:.2f}[/]  KL {row['objective/kl']:.2f}"
            bar.update(task, advance=1, live=live)


def run(folder: Path, seed: int, pretrain_steps: int, passes: int) -> None:
    """The act of PPO: trains, prints, writes logs, curves and model."""
    started = time.perf_counter()
    set_seed(seed)
    journal = Journal(folder)
    tokenizer = build_tokenizer(CHARACTERS)
    training_sums, unseen = split_sums()

    model = pretrain(tokenizer, training_sums, pretrain_steps, seed, journal)
    before, replies_before = evaluate("before", model, tokenizer, unseen, journal)

    config = PPOConfig(
        seed=seed, learning_rate=2e-4, batch_size=128, mini_batch_size=64, init_kl_coef=0.05
    )
    trainer = PPOTrainer(
        config,
        AutoModelForCausalLMWithValueHead.from_pretrained(model),
        tokenizer=tokenizer,
        dataset=Prompts(training_sums, tokenizer),
        data_collator=collate,
    )
    lift(trainer, tokenizer, passes, journal)

    trained = trainer.accelerator.unwrap_model(trainer.model)
    trained.save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    after, replies_after = evaluate("after", trained.pretrained_model, tokenizer, unseen, journal)
    show_samples(unseen[:8], replies_before[:8], replies_after[:8])
    panels = {
        "reward (share of right answers)": "reward",
        "KL to the pretrained model (nats a reply)": "objective/kl",
        "entropy (nats a reply)": "objective/entropy",
        "value loss": "ppo/loss/value",
    }
    save_curves(
        folder / "curves.png",
        "PPO on two-digit sums",
        {title: journal.column(key) for title, key in panels.items()},
        note=f"right answers to {len(unseen)} unseen sums: {before:.1%} before, {after:.1%} after",
        axis_label="PPO step",
    )
    seconds = time.perf_counter() - started
    journal.write(stage="done", seconds=round(seconds, 1))
    console.print(f"{before:.3f} → [bold green]{after:.3f}[/] in {seconds:.0f} s; see {folder}/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--act", choices=("both", "ppo", "grpo"), default="both")
    parser.add_argument("--seed", type=int, default=0, help="of weights, homework and sampling")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--pretrain-steps", type=int, default=250, help="before PPO")
    parser.add_argument("--passes", type=int, default=2, help="of PPO over the training sums")
    options = parser.parse_args()
    torch.set_num_threads(1)  # matrices this small lose more to waiting than a second core gives
    disable_progress_bar()
    if options.act != "grpo":
        console.rule("PPO: two-digit sums that carry")
        run(options.output_dir, options.seed, options.pretrain_steps, options.passes)
    if options.act != "ppo":
        console.rule("GRPO: two-digit sums that carry, differences that borrow")
        quickstart_grpo.run(options.output_dir / "grpo", options.seed)


if __name__ == "__main__":
    main()
