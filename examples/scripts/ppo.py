"""PPO makes a language model write positive film reviews.

Offline, from a folder of labelled sentences (everything is trained here):

    python examples/scripts/ppo.py --dataset path/to/rt-polarity
    python examples/scripts/ppo.py --smoke          # made-up sentences, to see that it runs

With a hub, the models and data of TRL's example:

    python examples/scripts/ppo.py --log_with wandb --use_score_scaling --score_clip 0.5
    python examples/scripts/ppo.py --ppo_config.model_name gpt2-xl --ppo_config.mini_batch_size 1

Flags of PPO by `train()` (--dataset_name --total_episodes …) go to ppo_train.py.
Writes log.jsonl, curves.png, report.md, summary.json and the tuned model to --output_dir.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import made_up
import processes
import torch
from command_line import names_given, parse
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sentiment_offline import (
    console,
    diversity,
    judge_positive,
    kept_language_model,
    read_reviews,
    train_classifier,
    train_language_model,
    train_tokenizer,
)
from transformers import AutoTokenizer

from fastrl import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    ModelConfig,
    PPOConfig,
    PPOTrainConfig,
    PPOTrainer,
    ScriptArguments,
    set_seed,
)
from fastrl.cli.curves import save_curves
from fastrl.cli.ppo import scorer
from fastrl.train.script_arguments import load

HUB_DEFAULTS = {
    "model_name": "lvwerra/gpt2-imdb",
    "query_dataset": "imdb",
    "learning_rate": 1.41e-5,
    "target_kl": 6.0,
}
OFFLINE_DEFAULTS = {
    "learning_rate": 2e-4,
    "batch_size": 64,
    "mini_batch_size": 32,
    "init_kl_coef": 0.1,
    "adap_kl_ctrl": False,
}
SMOKE_DEFAULTS = {"batch_size": 16, "mini_batch_size": 8}


@dataclass(frozen=True)
class Options:
    dataset: str | None = None  # a folder of *.pos and *.neg; None: query_dataset from the hub
    output_dir: str = "runs/sentiment"
    max_steps: int | None = None  # PPO steps; None: 80 offline, one epoch with a hub
    lm_epochs: int = 4  # offline: epochs of the language model
    family: Literal["gpt2", "falcon", "llama"] = "gpt2"  # offline: what the language model is
    cache_dir: str | None = None  # offline: keeps trained language models for the next run
    model_seed: int | None = None  # offline: of language model and classifiers; None: --seed
    smoke: bool = False  # offline: a few sentences and steps, to see that it runs
    use_seq2seq: bool = False
    use_peft: bool = False
    lora_alpha: float = 16
    lora_r: int = 16
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Task:
    """What PPO needs to know of where its prompts and rewards come from."""

    tokenizer: Any
    model: Any  # name or language model, for from_pretrained
    rows: list[dict[str, Any]]  # "input_ids" (L,) and "query"
    test_rows: list[dict[str, Any]]
    score: Callable[[list[str]], list[float]]  # a classifier's logit for "positive"
    judge: Callable[[list[str]], float] | None  # mean P(positive) of a classifier not trained on
    new_tokens: int


def make_rows(tokenizer: Any, texts: list[str], shortest: int, longest: int) -> list[dict]:
    """The first few tokens of each text, of a length drawn anew for each, as prompts."""
    rows = []
    for text in texts:
        length = int(torch.randint(shortest, longest, ()))
        ids = tokenizer(text, return_tensors="pt").input_ids[0][:length]
        rows.append({"input_ids": ids, "query": tokenizer.decode(ids)})
    return rows


def flags_of_train_form(names: set[str]) -> list[str]:
    """Those of the names that only PPO by `train()` has."""
    kinds = {"step": (Options, PPOConfig), "train": (PPOTrainConfig, ScriptArguments, ModelConfig)}
    known = {form: {f.name for kind in each for f in fields(kind)} for form, each in kinds.items()}
    of_step = known["step"] | PPOConfig._legacy_fields.keys() | {"local_rank"}
    return sorted(names & known["train"] - of_step)


def offline_task(options: Options, seed: int) -> Task:
    splits = read_reviews(Path(options.dataset))
    reward, judge = splits.reward, splits.judge
    if options.smoke:
        reward, judge = reward[:400], judge[:400]
    rewarder, judging = train_classifier(reward, seed), train_classifier(judge, seed)
    console.print(
        f"held-out accuracy: reward {rewarder.accuracy(splits.held_out):.1%}, "
        f"judge {judging.accuracy(splits.held_out):.1%} of {len(splits.held_out)} sentences"
    )
    texts = [review.text for review in reward + judge]
    tokenizer = train_tokenizer(texts)
    epochs = 1 if options.smoke else options.lm_epochs
    held_out = [review.text for review in splits.held_out]
    given = (tokenizer, texts, seed, epochs, options.family)
    folder = options.cache_dir
    model = kept_language_model(Path(folder), *given) if folder else train_language_model(*given)
    return Task(
        tokenizer=tokenizer,
        model=model,
        rows=make_rows(tokenizer, texts, 2, 6),
        test_rows=make_rows(tokenizer, held_out[:256], 2, 6),
        score=lambda replies: rewarder(replies).tolist(),
        judge=lambda replies: judge_positive(judging, replies),
        new_tokens=20,
    )


def refuse_offline_options(options: Options) -> None:
    """Exit if an option is given that only the offline task has."""
    plain = Options()
    for name in ("family", "cache_dir", "model_seed", "lm_epochs"):
        if getattr(options, name) != getattr(plain, name):
            raise SystemExit(f"--{name} is of the offline task: give --dataset too")


def hub_task(config: PPOConfig, options: Options) -> Task:
    tokenizer = AutoTokenizer.from_pretrained(
        config.model_name, trust_remote_code=options.trust_remote_code
    )
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    data = load(config.query_dataset, split="train")
    column = "text" if "text" in data.column_names else "review"
    texts = [text for text in data[column] if len(text) > 200]
    score = scorer(config.reward_model, None, processes.state().device)
    rows = make_rows(tokenizer, texts, 2, 8)
    held_out = min(256, len(rows) // 4)
    rest, test = rows[held_out:], rows[:held_out]
    return Task(tokenizer, config.model_name, rest, test, score, None, new_tokens=32)


def make_model(task: Task, options: Options) -> Any:
    kind = AutoModelForCausalLMWithValueHead
    if options.use_seq2seq:
        kind = AutoModelForSeq2SeqLMWithValueHead
    lora = None
    if options.use_peft:
        from peft import LoraConfig

        lora = LoraConfig(
            r=options.lora_r,
            lora_alpha=options.lora_alpha,
            bias="none",
            task_type="SEQ_2_SEQ_LM" if options.use_seq2seq else "CAUSAL_LM",
        )
    remote = {} if not isinstance(task.model, str) else {"trust_remote_code": True}
    keywords = remote if options.trust_remote_code else {}
    return kind.from_pretrained(task.model, peft_config=lora, **keywords)


def respond(trainer: PPOTrainer, task: Task, queries: list[torch.Tensor], **more: Any) -> Any:
    """Sampled at temperature 1 from the whole vocabulary: the distribution that PPO scores."""
    return trainer.generate(
        queries,
        batch_size=64,
        return_prompt=False,
        do_sample=True,
        top_k=0,
        top_p=1.0,
        max_new_tokens=task.new_tokens,
        pad_token_id=task.tokenizer.pad_token_id,
        **more,
    )


def evaluate(trainer: PPOTrainer, task: Task) -> tuple[dict[str, float], list[str]]:
    """Figures on the held-out prompts, sampled with a seed of their own, and the texts."""
    with torch.random.fork_rng():
        torch.manual_seed(2024)
        responses = respond(trainer, task, [row["input_ids"] for row in task.test_rows])
    replies = task.tokenizer.batch_decode(responses, skip_special_tokens=True)
    texts = [row["query"] + reply for row, reply in zip(task.test_rows, replies, strict=True)]
    scores = torch.tensor(task.score(texts))
    figures = {"reward (logit)": scores.mean().item(), "reward P(positive)": 0.0}
    figures["reward P(positive)"] = scores.sigmoid().mean().item()
    if task.judge is not None:
        figures["judge P(positive)"] = task.judge(texts)
    figures |= {f"distinct-{n}": diversity(replies, n) for n in (1, 2)}
    figures["tokens"] = sum(map(len, responses)) / len(responses)
    return figures, texts


def train(trainer: PPOTrainer, task: Task, steps: int, log: Path) -> list[dict[str, float]]:
    """The PPO loop; returns one row of numbers a step."""
    history: list[dict[str, float]] = []
    columns = (
        "{task.description}",
        "reward {task.fields[reward]:+.2f}",
        "KL {task.fields[kl]:.2f}",
    )
    shown = [TextColumn(columns[0]), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    shown += [TextColumn(column) for column in columns[1:]]
    with_reference = trainer.config.log_with is not None
    with Progress(*shown, console=console) as bar, log.open("w") as file:
        job = bar.add_task("PPO", total=steps, reward=0.0, kl=0.0)
        for epoch in count():
            for batch in trainer.dataloader:
                queries = batch["input_ids"]
                responses = respond(trainer, task, queries)
                batch["response"] = task.tokenizer.batch_decode(responses, skip_special_tokens=True)
                texts = [q + r for q, r in zip(batch["query"], batch["response"], strict=True)]
                rewards = [torch.tensor(score) for score in task.score(texts)]
                stats = trainer.step(queries, responses, rewards)
                logged = ["query", "response"]
                if with_reference:
                    logged += add_reference(trainer, task, batch)
                trainer.log_stats(stats, batch, rewards, columns_to_log=logged)
                numbers = {k: v for k, v in stats.items() if isinstance(v, float)}
                row = {"reward": torch.stack(rewards).mean().item(), **numbers}
                history.append(row)
                file.write(json.dumps({"step": len(history), "epoch": epoch, **row}) + "\n")
                file.flush()
                bar.update(job, advance=1, reward=row["reward"], kl=row["objective/kl"])
                if len(history) == steps:
                    return history


def add_reference(trainer: PPOTrainer, task: Task, batch: dict[str, Any]) -> list[str]:
    """The reference's responses to the same prompts and their rewards, for the trackers' table."""
    queries = batch["input_ids"]
    _, responses = respond(trainer, task, queries, generate_ref_response=True)
    batch["ref_response"] = task.tokenizer.batch_decode(responses, skip_special_tokens=True)
    texts = [q + r for q, r in zip(batch["query"], batch["ref_response"], strict=True)]
    batch["ref_rewards"] = task.score(texts)
    return ["ref_response", "ref_rewards"]


def report(
    before: dict[str, float], after: dict[str, float], texts: tuple[list[str], list[str]], kl: float
) -> str:
    """Before and after as Markdown: the figures, and the first texts to the same prompts."""
    lines = ["| on held-out prompts | before | after |", "|---|---|---|"]
    lines += [f"| {name} | {value:.3f} | {after[name]:.3f} |" for name, value in before.items()]
    lines += [f"| KL to the start (nats a row, last step) | 0 | {kl:.2f} |", ""]
    lines += ["| before | after |", "|---|---|"]
    for pair in list(zip(*texts, strict=True))[:8]:
        lines.append("| " + " | ".join(t.replace("|", "/").replace("\n", " ") for t in pair) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    words = sys.argv[1:] if argv is None else argv
    names = {name.removeprefix("args.") for name in names_given(words)}
    others = flags_of_train_form(names)
    if "dataset_name" in others:
        import ppo_train

        return ppo_train.main(words)
    if others:
        raise SystemExit(
            f"--{others[0]} is a flag of PPO by train(), which needs --dataset_name too; those of "
            "PPO by step() are in --help"
        )
    offline = bool(names & {"dataset", "smoke"})
    defaults = OFFLINE_DEFAULTS if offline else HUB_DEFAULTS
    if "smoke" in names:
        defaults = defaults | SMOKE_DEFAULTS
    options, config = parse(Options, defaults, words, __doc__.split("\n")[0])
    if options.use_seq2seq and offline:
        raise SystemExit(
            "--use_seq2seq needs an encoder-decoder: give --model_name and no --dataset"
        )
    if not offline:
        refuse_offline_options(options)
    set_seed(config.seed)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    console.quiet = not processes.state().is_main_process
    if offline and options.dataset is None:
        options = replace(options, dataset=made_up.reviews(folder / "rows"))
    model_seed = config.seed if options.model_seed is None else options.model_seed
    task = offline_task(options, model_seed) if offline else hub_task(config, options)
    trainer = PPOTrainer(
        config,
        make_model(task, options),
        tokenizer=task.tokenizer,
        dataset=PromptRows(task.rows),
        data_collator=lambda rows: {key: [row[key] for row in rows] for key in rows[0]},
    )
    first = evaluate(trainer, task)
    default_steps = 2 if options.smoke else 80 if offline else len(trainer.dataloader)
    steps = options.max_steps or default_steps
    main_process = trainer.accelerator.is_main_process
    start = time.perf_counter()
    history = train(
        trainer, task, steps, folder / "log.jsonl" if main_process else Path(os.devnull)
    )
    seconds = time.perf_counter() - start
    last = evaluate(trainer, task)
    summary = {"before": first[0], "after": last[0], "kl": history[-1]["objective/kl"]}
    accelerator = trainer.accelerator
    summary |= {"ppo_seconds": seconds, "processes": accelerator.num_processes}
    summary["mixed_precision"] = accelerator.mixed_precision
    if main_process:
        trainer.save_pretrained(folder / "checkpoint")
        write(folder, summary, (first[1], last[1]), history)
    accelerator.end_training()
    return summary


def write(
    folder: Path,
    summary: dict[str, Any],
    texts: tuple[list[str], list[str]],
    history: list[dict[str, float]],
) -> None:
    """report.md, summary.json and curves.png."""
    text = report(summary["before"], summary["after"], texts, summary["kl"])
    (folder / "report.md").write_text(text)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    panels = {
        "reward (logit of “positive”)": "reward",
        "KL to the starting model (nats a row)": "objective/kl",
        "entropy (nats a token)": "ppo/policy/entropy",
        "value loss": "ppo/loss/value",
    }
    curves = {title: [row[key] for row in history] for title, key in panels.items()}
    title = "PPO towards positive film reviews"
    save_curves(folder / "curves.png", title, curves, axis_label="PPO step")
    console.print(text)


class PromptRows(torch.utils.data.Dataset):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


if __name__ == "__main__":
    main()
