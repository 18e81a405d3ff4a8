"""PPO on episodes of a model with tools: what the scripts here have in common."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from tqdm import tqdm
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

sys.path.append(str(Path(__file__).resolve().parents[1]))
import smoke
from gsm8k import train_tokenizer

from fastrl import (
    AutoModelForCausalLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    TextEnvironment,
    create_reference_model,
    get_kbit_device_map,
    set_seed,
)

Tasks = Iterator[tuple[list[str], list[Any]]]  # questions, and what is right
TAGS = [f"<{name}>" for name in ("request", "call", "response", "submit")]
TRANSCRIPTS = 1600  # that a tiny model learns from
SMOKE = {
    "batch_size": 32,
    "mini_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "ppo_epochs": 4,
    "learning_rate": 3e-4,
    "max_new_tokens": 32,
    "iterations": 10,
    "load_in_8bit": False,
    "use_peft": False,
}


@dataclass
class ToolArguments:
    """The model and PPO's settings."""

    model_name: str = field(
        default="bigcode/starcoderbase", metadata={"help": "Hub name or folder."}
    )
    log_with: str | None = field(default=None, metadata={"help": "wandb or tensorboard."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Of Adam."})
    mini_batch_size: int = field(default=1, metadata={"help": "Rows of a backward pass."})
    batch_size: int = field(default=32, metadata={"help": "Episodes of a PPO step."})
    gradient_accumulation_steps: int = field(
        default=16, metadata={"help": "Backward passes of an optimizer step."}
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Most tokens of a turn."})
    ppo_epochs: int = field(default=1, metadata={"help": "Passes over the episodes of a step."})
    iterations: int = field(default=1000, metadata={"help": "PPO steps."})
    use_peft: bool = field(default=True, metadata={"help": "Train a LoRA adapter."})
    load_in_8bit: bool = field(
        default=True, metadata={"help": "Keep the base model in 8 bits; needs bitsandbytes."}
    )
    output_dir: str = field(default="runs/tools", metadata={"help": "Where the model goes."})
    seed: int = field(default=0, metadata={"help": "Of all that is random."})


def make_trainer(args: ToolArguments) -> PPOTrainer:
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model_name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    quantized = {"load_in_8bit": True, "device_map": get_kbit_device_map()}
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM")
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        args.model_name,
        peft_config=lora if args.use_peft else None,
        **(quantized if args.load_in_8bit else {}),
    )
    config = PPOConfig(
        model_name=args.model_name,
        log_with=args.log_with,
        learning_rate=args.learning_rate,
        mini_batch_size=args.mini_batch_size,
        batch_size=args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        ppo_epochs=args.ppo_epochs,
        optimize_device_cache=True,
        seed=args.seed,
    )
    reference = None if args.use_peft else create_reference_model(model)
    return PPOTrainer(config, model, reference, tokenizer)


def run(
    args: ToolArguments,
    tools: Mapping[str, Callable[[str], Any]],
    reward_fn: Callable[..., list[Any]],
    prompt: str,
    tasks: Tasks,
    verbose: bool,
    **more: Any,
) -> list[float]:
    """Train for `args.iterations` steps and save; the mean reward of each step.

    Args:
        tools: by the names that the prompt calls them by.
        reward_fn: (last segments, targets=what is right) -> a number each.
        prompt: examples that show the model how.
        tasks: batches of `args.batch_size`.
        verbose: a line a step in place of a progress bar.
        more: for `TextEnvironment`.
    """
    trainer = make_trainer(args)
    environment = TextEnvironment(
        trainer.model,
        trainer.tokenizer,
        tools,
        reward_fn,
        prompt,
        generation_kwargs={
            "do_sample": True,
            "top_k": 0.0,
            "top_p": 1.0,
            "max_new_tokens": args.max_new_tokens,
            "pad_token_id": trainer.tokenizer.pad_token_id,
        },
        **more,
    )
    means = []
    for step in tqdm(range(1, args.iterations + 1), disable=verbose):
        questions, targets = next(tasks)
        queries, responses, masks, rewards, histories = environment.run(questions, targets=targets)
        stats = trainer.step(queries, responses, rewards, masks)
        texts = [
            trainer.tokenizer.decode(response, skip_special_tokens=True) for response in responses
        ]
        trainer.log_stats(stats, {"query": questions, "response": texts}, rewards)
        means.append(torch.stack(rewards).mean().item())
        if verbose:
            called = sum(f"{environment.response_token}" in text for text in texts) / len(texts)
            print(f"step {step:2}  reward {means[-1]:.2f}  episodes with a tool {called:.2f}")
    if verbose:
        histories[0].show_text()
    if trainer.accelerator.is_main_process:
        trainer.save_pretrained(args.output_dir)
        print(f"mean reward: {means[0]:.2f} in the first step, {means[-1]:.2f} in the last")
    return means


def shuffled(rows: Sequence[tuple[str, Any]], batch_size: int, seed: int) -> Tasks:
    """Batches of rows in a random order, again and again."""
    rng = random.Random(seed)
    waiting: list[tuple[str, Any]] = []
    while True:
        while len(waiting) < batch_size:
            waiting += rng.sample(rows, len(rows))
        batch, waiting = waiting[:batch_size], waiting[batch_size:]
        yield [question for question, _ in batch], [target for _, target in batch]


def tiny_model(folder: str, name: str, transcript: Callable[[random.Random], str]) -> str:
    """The folder of a GPT-2 that has read transcripts of episodes, good and bad ones."""
    made = Path(folder) / "tools" / name
    with smoke.made_once(made) as unfinished:
        if unfinished is not None:
            set_seed(0)
            rng = random.Random(0)
            texts = [transcript(rng) for _ in range(TRANSCRIPTS)]
            tokenizer = train_tokenizer(texts)
            tokenizer.add_tokens([*TAGS, f"<{name}>"])
            config = GPT2Config(
                n_embd=64,
                n_layer=2,
                n_head=4,
                n_positions=128,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                initializer_range=0.1,  # of a tiny model: with less it learns to copy much later
                **smoke.sizes(tokenizer),
            )
            model = smoke.fit(GPT2LMHeadModel(config), tokenizer, texts, epochs=6, rate=1e-2)
            smoke.save(unfinished, model, tokenizer)
    return str(made)
