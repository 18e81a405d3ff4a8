"""`fastrl ppo`: classic PPO on the prompts of a dataset, rewarded by a classifier."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import fastrl

HELP = "classic PPO on the prompts of a dataset, rewarded by a classifier"
PROMPT_COLUMNS = ("query", "prompt", "text")


@dataclass
class PPOArguments:
    """What the loop around `PPOTrainer` needs to know."""

    output_dir: str = field(
        default="runs/ppo", metadata={"help": "Folder for log.jsonl and the trained model."}
    )
    max_steps: int | None = field(
        default=None, metadata={"help": "PPO steps; unset: one pass over the prompts."}
    )
    max_prompt_length: int = field(
        default=64, metadata={"help": "Tokens of a prompt; the rest is cut."}
    )
    max_new_tokens: int = field(default=32, metadata={"help": "Tokens of a response."})
    reward_label: str | None = field(
        default=None,
        metadata={"help": "Label whose logit is the reward; unset: the only one, or POSITIVE."},
    )


def make_parser(subparsers: Any = None, prog: str | None = None) -> Any:
    """The command's parser: options of data, loop, PPO, model and dataset mixture."""
    from fastrl.cli.training import parser_for

    parser = parser_for((PPOArguments, fastrl.PPOConfig), "ppo", HELP, subparsers, prog)
    mappings = {f.name for f in dataclasses.fields(fastrl.PPOConfig) if f.name.endswith("_kwargs")}
    for action in parser._actions:
        if action.dest in mappings:
            action.type = json.loads
        elif action.dest == "log_with":
            action.type = str
    return parser


def prompts_of(rows: Any, tokenizer: Any, longest: int) -> Any:
    """Rows with `query` (text) and `input_ids` (L,), L from 1 to `longest`; none empty.

    Raises:
        ValueError: no column holds prompts, or all of them are empty.
    """
    column = next((name for name in PROMPT_COLUMNS if name in rows.column_names), None)
    if column is None:
        raise ValueError(f"no column of {PROMPT_COLUMNS} in the dataset, only {rows.column_names}")

    def tokenize(row: dict[str, Any]) -> dict[str, Any]:
        ids = tokenizer(row[column], truncation=True, max_length=longest)["input_ids"]
        return {"input_ids": ids, "query": tokenizer.decode(ids, skip_special_tokens=True)}

    found = rows.map(tokenize, remove_columns=rows.column_names)
    found = found.filter(lambda row: len(row["input_ids"]) > 0)
    if len(found) == 0:
        raise ValueError(f"column {column!r}: every prompt is empty")
    return found.with_format("torch", columns=["input_ids"], output_all_columns=True)


def scorer(name: str, label: str | None, device: Any) -> Callable[[list[str]], list[float]]:
    """A function of texts that returns a label's logits.

    Args:
        name: a classifier's folder or hub name; `task:name` as older releases wrote it works too.
        label: whose logit; None: the only one, or POSITIVE.

    Raises:
        ValueError: the classifier has several labels, and none of them is the one.
    """
    from transformers import pipeline

    task, _, model = name.rpartition(":") if not Path(name).exists() else ("", "", name)
    classify = pipeline(
        task or "text-classification",
        model=model,
        device=device,
        top_k=None,
        function_to_apply="none",
    )
    labels = list(classify.model.config.id2label.values())
    wanted = label or (labels[0] if len(labels) == 1 else "POSITIVE")
    if wanted not in labels:
        raise ValueError(f"reward_model {name} has the labels {labels}: choose by reward_label=")

    def score(texts: list[str]) -> list[float]:
        return [
            next(found["score"] for found in every if found["label"] == wanted)
            for every in classify(texts, batch_size=16, truncation=True)
        ]

    return score


def _batches(trainer: Any, steps: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(step from 1 on, batch), over the prompts as often as it takes."""
    last = len(trainer.dataloader) if steps is None else steps
    step = 0
    while step < last:
        for batch in trainer.dataloader:
            step += 1
            yield step, batch
            if step == last:
                return


def _train(trainer: Any, tokenizer: Any, score: Callable[..., Any], args: PPOArguments) -> None:
    """The loop: respond, score, step, log."""
    from fastrl.train.callbacks.log_file import NAME, plain

    main_process = trainer.accelerator.is_main_process
    log = Path(args.output_dir) / NAME
    if main_process:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")
    for step, batch in _batches(trainer, args.max_steps):
        queries = list(batch["input_ids"])
        responses = trainer.generate(
            queries,
            batch_size=trainer.config.mini_batch_size,
            return_prompt=False,
            do_sample=True,
            top_k=0,  # the whole vocabulary: the distribution that PPO scores
            top_p=1.0,
            max_new_tokens=args.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        batch["response"] = tokenizer.batch_decode(responses, skip_special_tokens=True)
        texts = [q + r for q, r in zip(batch["query"], batch["response"], strict=True)]
        rewards = list(torch.tensor(score(texts)))
        stats = trainer.step(queries, responses, rewards)
        trainer.log_stats(stats, batch, rewards)
        if main_process:
            numbers = {name: value for name, value in stats.items() if isinstance(value, float)}
            row = {"step": step, "reward": sum(map(float, rewards)) / len(rewards), **numbers}
            with log.open("a") as file:
                file.write(json.dumps(plain(row), allow_nan=False) + "\n")
            print(f"step {step}: reward {row['reward']:.3f}, KL {row['objective/kl']:.3f}")


def main(
    script_args: Any, ppo_args: PPOArguments, config: Any, model_args: Any, dataset_args: Any
) -> None:
    """Train as the options say; `model_name_or_path` goes before PPOConfig's `model_name`."""
    from transformers import AutoTokenizer

    from fastrl.cli.training import datasets_for

    fastrl.set_seed(config.seed)
    name = model_args.model_name_or_path or config.model_name
    tokenizer = AutoTokenizer.from_pretrained(name, revision=model_args.model_revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows, _ = datasets_for(script_args, dataset_args, evaluates=False)
    model = fastrl.AutoModelForCausalLMWithValueHead.from_pretrained(
        name,
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=fastrl.get_quantization_config(model_args),
        peft_config=fastrl.get_peft_config(model_args),
    )
    trainer = fastrl.PPOTrainer(
        config,
        model,
        tokenizer=tokenizer,
        dataset=prompts_of(rows, tokenizer, ppo_args.max_prompt_length),
        data_collator=lambda batch: {key: [row[key] for row in batch] for key in batch[0]},
    )
    score = scorer(config.reward_model, ppo_args.reward_label, trainer.accelerator.device)
    _train(trainer, tokenizer, score, ppo_args)
    if trainer.accelerator.is_main_process:
        trainer.save_pretrained(ppo_args.output_dir)
        print(f"saved to {ppo_args.output_dir}")


if __name__ == "__main__":
    from fastrl.cli.launch import run

    sys.exit(run("ppo", sys.argv[1:]))
