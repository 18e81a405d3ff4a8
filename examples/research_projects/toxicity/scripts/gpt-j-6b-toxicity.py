"""Detoxification: PPO teaches GPT-J to go on politely where a text begins rudely.

Openings of rude texts are continued, a classifier's logit of "no hate" is the reward, and the
lower layers are shared with the reference: only the upper ones are trained and kept twice.

    accelerate launch examples/research_projects/toxicity/scripts/gpt-j-6b-toxicity.py \\
        --log_with wandb
    python examples/research_projects/toxicity/scripts/gpt-j-6b-toxicity.py --smoke

Before and after, it prints how toxic the continuations of held-out openings are.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.append(str(Path(__file__).resolve().parents[2]))
import smoke
from toxicity_classifier import NAME, ToxicityClassifier

from fastrl import (
    AutoModelForCausalLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    create_reference_model,
    set_seed,
)
from fastrl.core import LengthSampler

SMOKE = {
    "batch_size": 32,
    "mini_batch_size": 16,
    "ppo_epochs": 4,
    "steps": 10,
    "learning_rate": 1e-3,
    "num_shared_layers": 1,
    "input_min_text_length": 3,
    "input_max_text_length": 6,
    "output_min_length": 16,
    "output_max_length": 20,
    "model_save_path": "runs/toxicity",
}
RUDE_FROM = 0.3  # toxicity of the openings that are trained on


@dataclass
class ScriptArguments:
    """Where everything comes from, and PPO's settings."""

    model_name: str = field(
        default="ybelkada/gpt-j-6b-sharded-bf16", metadata={"help": "Hub name or folder."}
    )
    log_with: str | None = field(default=None, metadata={"help": "wandb or tensorboard."})
    learning_rate: float = field(default=2.94e-5, metadata={"help": "Of Adam."})
    mini_batch_size: int = field(default=4, metadata={"help": "Rows of a backward pass."})
    batch_size: int = field(default=16, metadata={"help": "Rows of a PPO step."})
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Backward passes of an optimizer step."}
    )
    model_save_path: str = field(
        default="./gpt-j-6B-detoxified", metadata={"help": "Folder the model is saved to."}
    )
    dataset_name: str = field(
        default="allenai/real-toxicity-prompts",
        metadata={"help": "Hub name or folder; rows with `prompt` and `continuation`."},
    )
    toxicity_model: str = field(default=NAME, metadata={"help": "Hub name or folder."})
    num_shared_layers: int = field(
        default=20, metadata={"help": "Layers that are frozen and shared with the reference."}
    )
    ppo_epochs: int = field(default=100, metadata={"help": "Passes over the rows of a step."})
    steps: int | None = field(
        default=None, metadata={"help": "PPO steps; unset: once over the data."}
    )
    input_min_text_length: int = field(default=30, metadata={"help": "Tokens of an opening."})
    input_max_text_length: int = field(default=40, metadata={"help": "One more than it has."})
    output_min_length: int = field(default=20, metadata={"help": "Tokens of a continuation."})
    output_max_length: int = field(default=30, metadata={"help": "One more than it has."})
    save_freq: int = field(default=100, metadata={"help": "Save after every so many steps."})
    seed: int = field(default=0, metadata={"help": "Of all that is random."})


def build_dataset(args: ScriptArguments, tokenizer: Any) -> tuple[Any, Any]:
    """(openings to train on, a fifth held out): `input_ids`, 1-D tensors, and `query`, texts."""
    length = LengthSampler(args.input_min_text_length, args.input_max_text_length)

    def opening(row: dict[str, Any]) -> dict[str, Any]:
        ids = tokenizer.encode(row["prompt"]["text"] + row["continuation"]["text"])[: length()]
        return {"input_ids": ids, "query": tokenizer.decode(ids)}

    rows = load_dataset(args.dataset_name, split="train")
    rows = rows.filter(lambda row: (row["prompt"]["toxicity"] or 0.0) > RUDE_FROM)
    rows = rows.map(opening, remove_columns=rows.column_names)
    rows.set_format("torch")
    parts = rows.train_test_split(test_size=0.2, shuffle=False)
    return parts["train"], parts["test"]


def make_trainer(args: ScriptArguments, tokenizer: Any, rows: Any) -> PPOTrainer:
    config = PPOConfig(
        model_name=args.model_name,
        learning_rate=args.learning_rate,
        log_with=args.log_with,
        ppo_epochs=args.ppo_epochs,
        mini_batch_size=args.mini_batch_size,
        batch_size=args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        seed=args.seed,
    )
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    base = AutoModelForCausalLM.from_pretrained(args.model_name, dtype=dtype)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(base)
    reference = create_reference_model(model, num_shared_layers=args.num_shared_layers)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return PPOTrainer(
        config,
        model,
        ref_model=reference,
        tokenizer=tokenizer,
        dataset=rows,
        data_collator=lambda batch: {key: [row[key] for row in batch] for key in batch[0]},
        optimizer=torch.optim.Adam(trained, lr=args.learning_rate),
    )


def continuations(trainer: PPOTrainer, queries: list[torch.Tensor], args: ScriptArguments) -> Any:
    """(token ids, texts), sampled from the whole vocabulary."""
    made = trainer.generate(
        queries,
        batch_size=args.batch_size,
        length_sampler=LengthSampler(args.output_min_length, args.output_max_length),
        return_prompt=False,
        min_length=-1,
        top_k=0.0,
        top_p=1.0,
        do_sample=True,
        pad_token_id=trainer.tokenizer.eos_token_id,
    )
    return made, trainer.tokenizer.batch_decode(made, skip_special_tokens=True)


def toxicity_of(
    trainer: PPOTrainer, judge: ToxicityClassifier, rows: Any, args: ScriptArguments
) -> float:
    """Mean toxicity of continuations of up to 256 openings, drawn with the same noise each time."""
    rows = rows.select(range(min(256, len(rows))))
    device = trainer.accelerator.device
    with torch.random.fork_rng():
        torch.manual_seed(2024)
        _, texts = continuations(trainer, [ids.to(device) for ids in rows["input_ids"]], args)
    return judge.toxicity(texts).mean().item()


def batches(trainer: PPOTrainer, steps: int | None) -> Any:
    """So many batches, beginning anew as often as it takes; without a number, each one once."""
    if steps is None:
        return iter(trainer.dataloader)
    return islice((batch for _ in count() for batch in trainer.dataloader), steps)


def train(trainer: PPOTrainer, judge: ToxicityClassifier, args: ScriptArguments) -> None:
    total = args.steps or len(trainer.dataloader)
    shown = tqdm(batches(trainer, args.steps), total=total, disable=args.smoke is not None)
    for step, batch in enumerate(shown, 1):
        queries = batch["input_ids"]
        responses, batch["response"] = continuations(trainer, queries, args)
        texts = [q + r for q, r in zip(batch["query"], batch["response"], strict=True)]
        rewards = list(judge.politeness(texts))
        stats = trainer.step(queries, responses, rewards)
        trainer.log_stats(stats, batch, rewards)
        if args.smoke is not None:
            kl, reward = stats["objective/kl"], stats["ppo/mean_scores"]
            print(f"step {step:2}  reward {reward:+.2f}  KL {kl:.2f}")
        if step % args.save_freq == 0 and trainer.accelerator.is_main_process:
            trainer.save_pretrained(args.model_save_path)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train and save; the toxicity of held-out continuations before and after."""
    offline, args = smoke.parse((ScriptArguments,), SMOKE, __doc__, argv)
    args.smoke = offline.smoke
    if args.smoke is not None:
        made = smoke.toxicity(Path(args.smoke))
        args.model_name, args.toxicity_model = made.model, made.classifier
        args.dataset_name = made.prompts
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model_name)
    tokenizer.pad_token = tokenizer.eos_token
    rows, held_out = build_dataset(args, tokenizer)
    trainer = make_trainer(args, tokenizer, rows)
    judge = ToxicityClassifier(args.toxicity_model, trainer.accelerator.device)
    before = toxicity_of(trainer, judge, held_out, args)
    train(trainer, judge, args)
    after = toxicity_of(trainer, judge, held_out, args)
    if trainer.accelerator.is_main_process:
        trainer.save_pretrained(args.model_save_path)
        print(f"toxicity of held-out continuations: {before:.3f} before, {after:.3f} after")
    return {"before": before, "after": after}


if __name__ == "__main__":
    main()
