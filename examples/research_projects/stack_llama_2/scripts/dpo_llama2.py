"""StackLLaMA 2, stage 2: DPO with a LoRA adapter on pairs of answers of Stack Exchange.

    accelerate launch examples/research_projects/stack_llama_2/scripts/dpo_llama2.py \\
        --model_name_or_path sft/final_checkpoint --output_dir dpo
    python examples/research_projects/stack_llama_2/scripts/dpo_llama2.py --smoke

An adapter named by --model_name_or_path is merged into its model first. The reference is the model
without the new adapter, which goes to OUTPUT_DIR/final_checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

sys.path.append(str(Path(__file__).resolve().parents[2]))
import smoke
import stack_exchange

from fastrl import DPOConfig, DPOTrainer, get_kbit_device_map, set_seed

SMOKE = {
    "model_name_or_path": "runs/stack_llama_2/sft/final_checkpoint",
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "max_steps": 20,
    "warmup_steps": 0,
    "learning_rate": 5e-3,
    "optimizer_type": "adamw_torch",
    "eval_steps": 100,
    "load_in_4bit": False,
    "model_dtype": "float32",
    "output_dir": "runs/stack_llama_2/dpo",
    "report_to": "none",
}


@dataclass
class ScriptArguments:
    """The model, its adapter and the run."""

    beta: float = field(default=0.1, metadata={"help": "How much the reference holds."})
    model_name_or_path: str = field(
        default="../sft/results/final_checkpoint",
        metadata={"help": "Hub name or folder of a model, or of an adapter."},
    )
    dataset_name: str = field(
        default=stack_exchange.NAME, metadata={"help": "Hub name or folder of the pairs."}
    )
    learning_rate: float = field(default=5e-4, metadata={"help": "Its peak."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Its course."})
    warmup_steps: int = field(default=100, metadata={"help": "Steps it rises."})
    weight_decay: float = field(default=0.05, metadata={"help": "Of the optimizer."})
    optimizer_type: str = field(
        default="paged_adamw_32bit", metadata={"help": "One of transformers'."}
    )
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Pairs of a batch."})
    per_device_eval_batch_size: int = field(default=1, metadata={"help": "To evaluate."})
    gradient_accumulation_steps: int = field(default=4, metadata={"help": "Batches of a step."})
    gradient_checkpointing: bool = field(
        default=True, metadata={"help": "Compute activations again instead of keeping them."}
    )
    gradient_checkpointing_use_reentrant: bool = field(
        default=False, metadata={"help": "Which way of torch's two."}
    )
    lora_alpha: float = field(default=16, metadata={"help": "Scale of the adapter."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before it."})
    lora_r: int = field(default=8, metadata={"help": "Its rank."})
    max_prompt_length: int = field(default=512, metadata={"help": "Tokens of a question."})
    max_length: int = field(default=1024, metadata={"help": "Tokens of question and answer."})
    max_steps: int = field(default=1000, metadata={"help": "Optimizer steps."})
    logging_steps: int = field(default=10, metadata={"help": "Log as often as this."})
    save_steps: int = field(default=100, metadata={"help": "Save a checkpoint as often."})
    eval_steps: int = field(default=100, metadata={"help": "Evaluate as often."})
    output_dir: str = field(default="./results", metadata={"help": "Where it all goes."})
    load_in_4bit: bool = field(
        default=True, metadata={"help": "Keep the base model in 4 bits; needs bitsandbytes."}
    )
    model_dtype: str = field(
        default="float16", metadata={"help": "Type of its weights: float16, bfloat16, float32."}
    )
    sanity_check: bool = field(default=False, metadata={"help": "Only the first 1000 pairs."})
    report_to: str = field(default="wandb", metadata={"help": "Where metrics go; none: nowhere."})
    ignore_bias_buffers: bool = field(
        default=False, metadata={"help": "Keep boolean buffers out of DDP's broadcasts."}
    )
    seed: int = field(default=0, metadata={"help": "Of all that is random."})


def load_pairs(args: ScriptArguments, part: str, tokenizer: Any) -> Dataset:
    """`prompt`, `chosen` and `rejected` of a part; pairs that are too long are left out."""
    rows = load_dataset(args.dataset_name, data_dir=f"data/{part}", split="train")
    if args.sanity_check:
        rows = rows.select(range(min(1000, len(rows))))

    def pair(row: dict[str, str]) -> dict[str, str]:
        return {
            "prompt": stack_exchange.prompt(row["question"]),
            "chosen": f" {row['response_j']}",
            "rejected": f" {row['response_k']}",
        }

    def fits(row: dict[str, str]) -> bool:
        prompt, *answers = (len(tokenizer(row[name]).input_ids) for name in row)
        return prompt <= args.max_prompt_length and prompt + max(answers) < args.max_length

    return rows.map(pair, remove_columns=rows.column_names).filter(fits)


def load_model(args: ScriptArguments) -> tuple[Any, Any]:
    """(model, tokenizer); an adapter becomes part of its model."""
    name = args.model_name_or_path
    dtype = getattr(torch, args.model_dtype)
    if (Path(name) / "adapter_config.json").is_file():
        model, tokenizer = stack_exchange.merged(name, dtype)
        if not args.load_in_4bit:
            return model, tokenizer
        name = f"{args.output_dir}/merged"
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
    keywords: dict[str, Any] = {"dtype": dtype}
    if args.load_in_4bit:
        keywords["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True)
        keywords["device_map"] = get_kbit_device_map()
    return (
        AutoModelForCausalLM.from_pretrained(name, **keywords),
        AutoTokenizer.from_pretrained(name),
    )


def make_config(args: ScriptArguments) -> DPOConfig:
    return DPOConfig(
        output_dir=args.output_dir,
        beta=args.beta,
        per_device_train_batch_size=args.per_device_train_batch_size,
        per_device_eval_batch_size=args.per_device_eval_batch_size,
        max_steps=args.max_steps,
        logging_steps=args.logging_steps,
        save_steps=args.save_steps,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        gradient_checkpointing=args.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": args.gradient_checkpointing_use_reentrant},
        learning_rate=args.learning_rate,
        eval_strategy="steps",
        eval_steps=args.eval_steps,
        report_to=args.report_to,
        lr_scheduler_type=args.lr_scheduler_type,
        warmup_steps=args.warmup_steps,
        weight_decay=args.weight_decay,
        optim=args.optimizer_type,
        bf16=torch.cuda.is_available(),
        max_length=args.max_length,
        run_name="dpo_llama2",
        seed=args.seed,
    )


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Train and save; the metrics on held-out pairs before and after."""
    offline, args = smoke.parse((ScriptArguments,), SMOKE, __doc__, argv)
    if offline.smoke is not None:
        _, args.dataset_name = stack_exchange.offline(offline.smoke)
    set_seed(args.seed)
    model, tokenizer = load_model(args)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if args.ignore_bias_buffers:
        model._ddp_params_and_buffers_to_ignore = [
            name for name, buffer in model.named_buffers() if buffer.dtype == torch.bool
        ]
    trainer = DPOTrainer(
        model,
        ref_model=None,
        args=make_config(args),
        train_dataset=load_pairs(args, "rl", tokenizer),
        eval_dataset=load_pairs(args, "evaluation", tokenizer),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=args.lora_r,
            lora_alpha=args.lora_alpha,
            lora_dropout=args.lora_dropout,
            target_modules="all-linear",
            bias="none",
            task_type="CAUSAL_LM",
        ),
    )
    found = {"before": trainer.evaluate()}
    trainer.train()
    found["after"] = trainer.evaluate()
    trainer.save_model(str(Path(args.output_dir) / "final_checkpoint"))
    for name in ("loss", "rewards/accuracies", "rewards/margins"):
        told = [f"{figures[f'eval_{name}']:.3f} {when}" for when, figures in found.items()]
        trainer.accelerator.print(f"{name} on held-out pairs: {', '.join(told)}")
    return found


if __name__ == "__main__":
    main()
