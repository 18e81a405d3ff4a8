"""StackLLaMA, stage 3: PPO with a LoRA adapter follows the reward model.

    accelerate launch --multi_gpu --num_processes 8 \\
        examples/research_projects/stack_llama/scripts/rl_training.py --log_with wandb \\
        --model_name llama-se-merged --reward_model_name llama-se-rm-merged \\
        --output_max_length 128 --batch_size 8 --gradient_accumulation_steps 8 \\
        --mini_batch_size 1 --batched_gen True --early_stopping True --save_freq 100
    python examples/research_projects/stack_llama/scripts/rl_training.py --smoke

The KL reference is the same model with the adapter switched off.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from tqdm import tqdm
from transformers import Adafactor, AutoTokenizer, BitsAndBytesConfig, pipeline

sys.path.append(str(Path(__file__).resolve().parents[2]))
import smoke
import stack_exchange

from fastrl import (
    AutoModelForCausalLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    get_kbit_device_map,
    set_seed,
)
from fastrl.core import LengthSampler

SMOKE = {
    "model_name": "runs/stack_llama/sft_merged",
    "reward_model_name": "runs/stack_llama/reward_merged",
    "batch_size": 32,
    "mini_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "steps": 320,
    "ppo_epochs": 4,
    "learning_rate": 3e-3,
    "output_max_length": 33,
    "batched_gen": True,
    "load_in_8bit": False,
    "output_dir": "runs/stack_llama/rl",
}
SHORTEST = 32  # tokens of an answer
LONGEST_PROMPT = 512  # tokens; longer ones are left out


@dataclass
class ScriptArguments:
    """The models, the questions, and PPO's settings."""

    model_name: str = field(default="", metadata={"help": "Hub name or folder of the policy."})
    tokenizer_name: str = field(
        default="", metadata={"help": "Hub name or folder; unset: the policy's."}
    )
    reward_model_name: str = field(default="", metadata={"help": "Hub name or folder."})
    dataset_name: str = field(
        default=stack_exchange.NAME, metadata={"help": "Hub name or folder of the questions."}
    )
    log_with: str | None = field(default=None, metadata={"help": "wandb or tensorboard."})
    learning_rate: float = field(default=1.41e-5, metadata={"help": "Of Adam or Adafactor."})
    output_max_length: int = field(default=128, metadata={"help": "Tokens of an answer, one more."})
    mini_batch_size: int = field(default=1, metadata={"help": "Rows of a backward pass."})
    batch_size: int = field(default=32, metadata={"help": "Rows of a PPO step."})
    ppo_epochs: int = field(default=4, metadata={"help": "Passes over the rows of a step."})
    gradient_accumulation_steps: int = field(
        default=4, metadata={"help": "Backward passes of an optimizer step."}
    )
    adafactor: bool = field(default=False, metadata={"help": "Adafactor in place of Adam."})
    early_stopping: bool = field(default=False, metadata={"help": "End a step's passes early."})
    target_kl: float = field(default=0.1, metadata={"help": "… once the KL is 1.5 times this."})
    reward_baseline: float = field(default=0.0, metadata={"help": "Taken from every reward."})
    batched_gen: bool = field(default=False, metadata={"help": "Answer a batch at once."})
    save_freq: int | None = field(default=None, metadata={"help": "Save as often as this."})
    output_dir: str = field(default="runs/", metadata={"help": "Where the adapters are saved."})
    seed: int = field(default=0, metadata={"help": "Of all that is random."})
    steps: int = field(default=20000, metadata={"help": "Answers to learn from, in all."})
    init_kl_coef: float = field(default=0.2, metadata={"help": "What a nat of KL costs at first."})
    adap_kl_ctrl: bool = field(default=True, metadata={"help": "Let that price follow the KL."})
    load_in_8bit: bool = field(
        default=True, metadata={"help": "Keep both models in 8 bits; needs bitsandbytes."}
    )


def build_dataset(args: ScriptArguments, tokenizer: Any) -> Dataset:
    """Questions as prompts: `input_ids`, 1-D tensors, and `query`, their text."""
    rows = load_dataset(args.dataset_name, data_dir="data/rl", split="train")
    rows = rows.select(range(min(100000, len(rows))))

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        query = stack_exchange.prompt(row["question"])
        return {"query": query, "input_ids": tokenizer(query).input_ids}

    rows = rows.map(ask, remove_columns=rows.column_names)
    rows = rows.filter(lambda row: len(row["input_ids"]) < LONGEST_PROMPT)
    rows.set_format("torch")
    return rows


def make_trainer(args: ScriptArguments, tokenizer: Any) -> PPOTrainer:
    config = PPOConfig(
        steps=args.steps,
        model_name=args.model_name,
        learning_rate=args.learning_rate,
        log_with=args.log_with,
        batch_size=args.batch_size,
        mini_batch_size=args.mini_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        optimize_device_cache=True,
        early_stopping=args.early_stopping,
        target_kl=args.target_kl,
        ppo_epochs=args.ppo_epochs,
        seed=args.seed,
        init_kl_coef=args.init_kl_coef,
        adap_kl_ctrl=args.adap_kl_ctrl,
    )
    quantized = {"load_in_8bit": True, "device_map": get_kbit_device_map()}
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        args.model_name,
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM"
        ),
        **(quantized if args.load_in_8bit else {}),
    )
    optimizer = None
    if args.adafactor:
        optimizer = Adafactor(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=args.learning_rate,
            scale_parameter=False,
            relative_step=False,
            warmup_init=False,
        )
    return PPOTrainer(
        config,
        model,
        ref_model=None,
        tokenizer=tokenizer,
        dataset=build_dataset(args, tokenizer),
        data_collator=lambda batch: {key: [row[key] for row in batch] for key in batch[0]},
        optimizer=optimizer,
    )


def make_score(args: ScriptArguments, device: torch.device) -> Callable[[list[str]], list[float]]:
    """Texts -> the reward model's numbers."""
    where: dict[str, Any] = {"device": device}
    if args.load_in_8bit:
        quantization = BitsAndBytesConfig(load_in_8bit=True)
        where = {"device_map": get_kbit_device_map()}
        where["model_kwargs"] = {"quantization_config": quantization}
    classify = pipeline("sentiment-analysis", model=args.reward_model_name, **where)

    def score(texts: list[str]) -> list[float]:
        found = classify(
            texts, top_k=None, function_to_apply="none", batch_size=16, truncation=True
        )
        return [labels[0]["score"] for labels in found]

    return score


def answers(trainer: PPOTrainer, args: ScriptArguments, queries: list[torch.Tensor]) -> Any:
    """(token ids, texts), sampled from the whole vocabulary."""
    made = trainer.generate(
        queries,
        batch_size=len(queries) if args.batched_gen else 1,
        return_prompt=False,
        length_sampler=LengthSampler(
            min(SHORTEST, args.output_max_length - 1), args.output_max_length
        ),
        top_k=0.0,
        top_p=1.0,
        do_sample=True,
        pad_token_id=trainer.tokenizer.pad_token_id,
    )
    return made, trainer.tokenizer.batch_decode(made, skip_special_tokens=True)


def train(trainer: PPOTrainer, args: ScriptArguments, verbose: bool) -> list[float]:
    """The PPO loop; the mean score of each step."""
    score = make_score(args, trainer.accelerator.device)
    steps = trainer.config.total_ppo_epochs
    batches = islice((batch for _ in count() for batch in trainer.dataloader), steps)
    means = []
    for step, batch in enumerate(tqdm(batches, total=steps, disable=verbose), 1):
        queries = batch["input_ids"]
        responses, batch["response"] = answers(trainer, args, queries)
        texts = [q + r for q, r in zip(batch["query"], batch["response"], strict=True)]
        scores = score(texts)
        rewards = [torch.tensor(number - args.reward_baseline) for number in scores]
        stats = trainer.step(queries, responses, rewards)
        trainer.log_stats(stats, batch, rewards)
        means.append(sum(scores) / len(scores))
        if verbose:
            print(f"step {step:2}  score {means[-1]:+.2f}  KL {stats['objective/kl']:.2f}")
        if args.save_freq and step % args.save_freq == 0 and trainer.accelerator.is_main_process:
            trainer.save_pretrained(Path(args.output_dir) / f"step_{step}")
    return means


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Train and save; the reward model's mean score of each step's answers."""
    offline, args = smoke.parse((ScriptArguments,), SMOKE, __doc__, argv)
    if offline.smoke is not None:
        _, args.dataset_name = stack_exchange.offline(offline.smoke)
    for name in ("model_name", "reward_model_name"):
        if not getattr(args, name):
            raise SystemExit(f"--{name} is needed: a hub name or a folder")
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer_name or args.model_name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = make_trainer(args, tokenizer)
    means = train(trainer, args, offline.smoke is not None)
    if trainer.accelerator.is_main_process:
        trainer.save_pretrained(Path(args.output_dir) / "final")
        print(f"mean score: {means[0]:+.2f} in the first step, {means[-1]:+.2f} in the last")
    return means


if __name__ == "__main__":
    main()
