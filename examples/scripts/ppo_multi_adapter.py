"""PPO with two adapters on one base model: one is the policy, the other its reward model.

Offline, from a folder of labelled sentences (the base model and the reward adapter come first):

    python examples/scripts/ppo_multi_adapter.py --dataset path/to/rt-polarity
    python examples/scripts/ppo_multi_adapter.py --smoke    # made-up sentences, to see that it runs

With a hub, the models of TRL's example, in 4 bits (needs bitsandbytes and a GPU):

    python examples/scripts/ppo_multi_adapter.py --use_score_scaling --use_score_norm
    python examples/scripts/ppo_multi_adapter.py --model_name huggyllama/llama-7b \\
        --rm_adapter my-reward-adapter --dataset_name Anthropic/hh-rlhf --ppo_config.log_with wandb

A reward adapter is what reward_modeling.py saves with --use_peft --lora_task_type SEQ_CLS.
Writes log.jsonl, curves.png, report.md, summary.json and the tuned adapter to --output_dir.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import made_up
import ppo
import torch
from accelerate import PartialState
from command_line import names_given, parse
from datasets import Dataset
from peft import LoraConfig
from sentiment_offline import Review, Splits, console, read_reviews
from transformers import AutoTokenizer, BitsAndBytesConfig

from fastrl import (
    AutoModelForCausalLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    RewardConfig,
    RewardTrainer,
    set_seed,
)
from fastrl.train.script_arguments import load

HUB_DEFAULTS = {
    "model_name": "huggyllama/llama-7b",
    "learning_rate": 1e-5,
    "batch_size": 8,
    "mini_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "optimize_device_cache": True,
}
OFFLINE_DEFAULTS = {**ppo.OFFLINE_DEFAULTS, "learning_rate": 1e-3}
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "bias": "none"}


@dataclass(frozen=True)
class Options:
    dataset: str | None = None  # a folder of *.pos and *.neg; None: dataset_name from the hub
    output_dir: str = "runs/ppo_multi_adapter"
    max_steps: int | None = None  # PPO steps; None: 60 offline, one epoch with a hub
    dataset_name: str = "Anthropic/hh-rlhf"
    dataset_split: str = "train[:1%]"
    rm_adapter: str = "trl-lib/llama-7b-hh-rm-adapter"
    load_in_4bit: bool = True  # with a hub
    use_safetensors: bool = False
    lm_epochs: int = 4  # offline: epochs of the base model
    smoke: bool = False  # offline: a few sentences and steps, to see that it runs


def pairs(reviews: list[Review]) -> Dataset:
    """A positive and a negative sentence each."""
    sides: dict[bool, list[str]] = {True: [], False: []}
    for review in reviews:
        sides[review.positive].append(review.text)
    both = zip(sides[True], sides[False], strict=False)
    return Dataset.from_list([{"chosen": good, "rejected": bad} for good, bad in both])


def train_reward_adapter(
    base: str, tokenizer: Any, splits: Splits, folder: Path, options: Options, seed: int
) -> str:
    """An adapter that prefers positive sentences to negative ones; the folder it is saved to."""
    trainer = RewardTrainer(
        model=base,
        args=RewardConfig(
            str(folder),
            per_device_train_batch_size=32,
            per_device_eval_batch_size=32,
            learning_rate=3e-3,
            num_train_epochs=3,
            max_steps=4 if options.smoke else -1,
            logging_steps=0.1,
            save_strategy="no",
            report_to="none",
            gradient_checkpointing=False,
            disable_tqdm=True,
            seed=seed,
        ),
        train_dataset=pairs(splits.reward[:400] if options.smoke else splits.reward),
        eval_dataset=pairs(splits.held_out),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="SEQ_CLS", modules_to_save=["score"], target_modules="all-linear", **LORA
        ),
    )
    trainer.train()
    trainer.save_model(str(folder))
    right = trainer.evaluate()["eval_accuracy"]
    console.print(f"reward adapter: {right:.0%} of held-out pairs in the right order")
    return str(folder)


def offline_task(options: Options, folder: Path, seed: int) -> tuple[ppo.Task, str]:
    """The sentiment task with its base model saved, and where its reward adapter is."""
    dataset = options.dataset or made_up.reviews(folder / "rows")
    task = ppo.offline_task(
        ppo.Options(dataset=dataset, smoke=options.smoke, lm_epochs=options.lm_epochs), seed
    )
    base = str(folder / "base")
    task.model.save_pretrained(base)
    task.tokenizer.save_pretrained(base)
    splits = read_reviews(Path(dataset))
    adapter = train_reward_adapter(base, task.tokenizer, splits, folder / "reward", options, seed)
    return ppo.replace(task, model=base), adapter


def hub_task(config: PPOConfig, options: Options) -> tuple[ppo.Task, str]:
    """First words of what assistants said in preferred conversations."""
    tokenizer = AutoTokenizer.from_pretrained(config.model_name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = load(options.dataset_name, split=options.dataset_split)["chosen"]
    rows = ppo.make_rows(tokenizer, list(texts), 2, 8)
    held_out = min(64, len(rows) // 4)
    task = ppo.Task(
        tokenizer, config.model_name, rows[held_out:], rows[:held_out], lambda _: [], None, 32
    )
    return task, options.rm_adapter


def make_model(task: ppo.Task, adapter: str, options: Options, offline: bool) -> Any:
    keywords: dict[str, Any] = {}
    if not offline:
        keywords["use_safetensors"] = options.use_safetensors
        if options.load_in_4bit:
            keywords["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
            keywords["device_map"] = {"": PartialState().local_process_index}
    lora = LoraConfig(task_type="CAUSAL_LM", **LORA)
    return AutoModelForCausalLMWithValueHead.from_pretrained(
        task.model, peft_config=lora, reward_adapter=adapter, **keywords
    )


def score(trainer: PPOTrainer, task: ppo.Task, texts: list[str], end: str) -> list[float]:
    """What the reward adapter says at the last token of each text, `end` if there is one."""
    texts = [text + end for text in texts]
    model = trainer.accelerator.unwrap_model(trainer.model)
    scores: list[float] = []
    for start in range(0, len(texts), 32):
        rows = task.tokenizer(
            texts[start : start + 32], padding=True, padding_side="right", return_tensors="pt"
        ).to(trainer.accelerator.device)
        last = rows.attention_mask.sum(1) - 1
        every = model.compute_reward_score(rows.input_ids, rows.attention_mask)
        # A model of two labels says in the second one how good a text is.
        scores += every[torch.arange(len(last)), last, -1].tolist()
    return scores


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    words = sys.argv[1:] if argv is None else argv
    names = {name.removeprefix("args.") for name in names_given(words)}
    offline = bool(names & {"dataset", "smoke"})
    defaults = OFFLINE_DEFAULTS if offline else HUB_DEFAULTS
    if "smoke" in names:
        defaults = defaults | ppo.SMOKE_DEFAULTS
    options, config = parse(Options, defaults, words, __doc__.split("\n")[0])
    set_seed(config.seed)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if offline and PartialState().num_processes > 1:
        raise SystemExit("offline the reward adapter is trained by one process: start only one")
    made = offline_task(options, folder, config.seed) if offline else hub_task(config, options)
    task, adapter = made
    trainer = PPOTrainer(
        config,
        make_model(task, adapter, options, offline),
        tokenizer=task.tokenizer,
        dataset=ppo.PromptRows(task.rows),
        data_collator=lambda rows: {key: [row[key] for row in rows] for key in rows[0]},
    )
    end = task.tokenizer.eos_token if offline else ""  # RewardTrainer ended its texts so
    task = ppo.replace(task, score=lambda texts: score(trainer, task, texts, end))
    first = ppo.evaluate(trainer, task)
    steps = options.max_steps or (
        2 if options.smoke else 60 if offline else len(trainer.dataloader)
    )
    begin = time.perf_counter()
    main_process = trainer.accelerator.is_main_process
    log = folder / "log.jsonl" if main_process else Path(os.devnull)
    history = ppo.train(trainer, task, steps, log)
    seconds = time.perf_counter() - begin
    last = ppo.evaluate(trainer, task)
    summary = {"before": first[0], "after": last[0], "kl": history[-1]["objective/kl"]}
    summary["ppo_seconds"] = seconds
    if main_process:
        trainer.save_pretrained(folder / "checkpoint")
        ppo.write(folder, summary, (first[1], last[1]), history)
    trainer.accelerator.end_training()
    return summary


if __name__ == "__main__":
    main()
