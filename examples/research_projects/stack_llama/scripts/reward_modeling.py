"""StackLLaMA, stage 2: a LoRA adapter learns which of two answers people preferred.

    torchrun --nproc_per_node 8 \\
        examples/research_projects/stack_llama/scripts/reward_modeling.py \\
        --model_name llama-se-merged
    python examples/research_projects/stack_llama/scripts/reward_modeling.py --smoke

Writes the adapter to OUTPUT_DIR/final_checkpoint; merge_peft_adapter.py makes a model of it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer

sys.path.append(str(Path(__file__).resolve().parents[2]))
import smoke
import stack_exchange

from fastrl import RewardConfig, RewardTrainer

SMOKE = {
    "model_name": "runs/stack_llama/sft_merged",
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "num_train_epochs": 3,
    "learning_rate": 3e-3,
    "bf16": False,
    "output_dir": "runs/stack_llama/reward",
}


@dataclass
class ScriptArguments:
    """The model, the pairs and the run."""

    local_rank: int = field(
        default=-1, metadata={"help": "What launchers pass; LOCAL_RANK, which they set, is read."}
    )
    resume_from_checkpoint: bool = field(
        default=False, metadata={"help": "Go on from the last checkpoint."}
    )
    deepspeed: str | None = field(default=None, metadata={"help": "DeepSpeed's JSON file."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Pairs of a batch."})
    per_device_eval_batch_size: int = field(default=1, metadata={"help": "To evaluate."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches of a step."})
    learning_rate: float = field(default=2e-5, metadata={"help": "At the start."})
    weight_decay: float = field(default=0.001, metadata={"help": "Of AdamW."})
    model_name: str = field(default="gpt2", metadata={"help": "Hub name or folder."})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Hub name or folder; unset: the model's."}
    )
    dataset_name: str = field(
        default=stack_exchange.NAME, metadata={"help": "Hub name or folder of the pairs."}
    )
    bf16: bool = field(default=True, metadata={"help": "Compute in bf16."})
    num_train_epochs: int = field(default=1, metadata={"help": "Passes over the pairs."})
    train_subset: int = field(default=100000, metadata={"help": "Pairs to train on; 0: all."})
    eval_subset: int = field(default=50000, metadata={"help": "Pairs to evaluate on; 0: all."})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Compute activations again instead of keeping them."}
    )
    optim: str = field(default="adamw_torch", metadata={"help": "One of transformers'."})
    lr_scheduler_type: str = field(default="linear", metadata={"help": "Its course."})
    max_length: int = field(default=512, metadata={"help": "Longer pairs are left out."})
    eval_first_step: bool = field(default=False, metadata={"help": "Evaluate before training."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Unset: named by the model and the settings."}
    )
    seed: int = field(default=0, metadata={"help": "Of all that is random."})


def load_pairs(args: ScriptArguments, part: str, most: int, tokenizer: Any) -> Dataset:
    """`chosen_ids` and `rejected_ids`: the question with either answer, as PPO will show them."""
    rows = load_dataset(args.dataset_name, data_dir=f"data/{part}", split="train")
    if most:
        rows = rows.select(range(min(most, len(rows))))

    def tokenize(row: dict[str, str]) -> dict[str, list[int]]:
        sides = {"chosen_ids": "response_j", "rejected_ids": "response_k"}
        texts = {ids: stack_exchange.text(row, side) for ids, side in sides.items()}
        return {ids: tokenizer(text).input_ids for ids, text in texts.items()}

    rows = rows.map(tokenize, remove_columns=rows.column_names)
    return rows.filter(
        lambda row: max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= args.max_length
    )


def folder_of(args: ScriptArguments) -> str:
    own = Path(args.model_name).name
    name = f"{own}_peft_stack-exchange-paired_rmts__{args.train_subset}_{args.learning_rate}"
    return args.output_dir or name


def make_trainer(args: ScriptArguments) -> RewardTrainer:
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer_name or args.model_name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    config = RewardConfig(
        output_dir=folder_of(args),
        learning_rate=args.learning_rate,
        per_device_train_batch_size=args.per_device_train_batch_size,
        per_device_eval_batch_size=args.per_device_eval_batch_size,
        num_train_epochs=args.num_train_epochs,
        weight_decay=args.weight_decay,
        eval_strategy="steps",
        eval_steps=500,
        save_strategy="steps",
        save_steps=500,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        gradient_checkpointing=args.gradient_checkpointing,
        deepspeed=args.deepspeed,
        bf16=args.bf16,
        logging_steps=10,
        optim=args.optim,
        lr_scheduler_type=args.lr_scheduler_type,
        max_length=args.max_length,
        seed=args.seed,
    )
    return RewardTrainer(
        args.model_name,
        config,
        train_dataset=load_pairs(args, "reward", args.train_subset, tokenizer),
        eval_dataset=load_pairs(args, "evaluation", args.eval_subset, tokenizer),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=32, lora_dropout=0.1, task_type="SEQ_CLS"),
    )


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Train and save; loss and accuracy on held-out pairs, before only with --eval_first_step."""
    offline, args = smoke.parse((ScriptArguments,), SMOKE, __doc__, argv)
    if offline.smoke is not None:
        _, args.dataset_name = stack_exchange.offline(offline.smoke)
        args.eval_first_step = True
    trainer = make_trainer(args)
    found = {}
    if args.eval_first_step:
        found["before"] = trainer.evaluate()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    found["after"] = trainer.evaluate()
    trainer.save_model(str(Path(folder_of(args)) / "final_checkpoint"))
    for name in ("loss", "accuracy"):
        told = [f"{figures[f'eval_{name}']:.3f} {when}" for when, figures in found.items()]
        trainer.accelerator.print(f"{name} on held-out pairs: {', '.join(told)}")
    return found


if __name__ == "__main__":
    main()
