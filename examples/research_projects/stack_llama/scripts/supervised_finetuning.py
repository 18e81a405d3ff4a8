"""StackLLaMA, stage 1: a LoRA adapter learns to answer questions of Stack Exchange.

    torchrun --nproc_per_node 8 \\
        examples/research_projects/stack_llama/scripts/supervised_finetuning.py \\
        --model_path huggyllama/llama-7b --streaming --max_steps 5000 --output_dir llama-se
    python examples/research_projects/stack_llama/scripts/supervised_finetuning.py --smoke

Writes the adapter to OUTPUT_DIR/final_checkpoint; merge_peft_adapter.py makes a model of it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peft import LoraConfig
from transformers import AutoTokenizer, BitsAndBytesConfig

sys.path.append(str(Path(__file__).resolve().parents[2]))
import smoke
import stack_exchange

from fastrl import SFTConfig, SFTTrainer, get_kbit_device_map, set_seed

SMOKE = {
    "seq_length": 64,
    "max_steps": 60,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "num_warmup_steps": 0,
    "size_valid_set": 9,
    "eval_freq": 30,
    "log_freq": 10,
    "no_fp16": True,
    "no_gradient_checkpointing": True,
    "load_in_8bit": False,
    "output_dir": "runs/stack_llama/sft",
}


@dataclass
class ScriptArguments:
    """The model, the rows and the run."""

    model_path: str = field(default="", metadata={"help": "Hub name or folder of the model."})
    dataset_name: str = field(
        default=stack_exchange.NAME, metadata={"help": "Hub name or folder of the rows."}
    )
    subset: str = field(default="data/finetune", metadata={"help": "Folder of the dataset."})
    split: str = field(default="train", metadata={"help": "Split of that folder."})
    size_valid_set: int = field(default=4000, metadata={"help": "Rows to evaluate on."})
    streaming: bool = field(default=False, metadata={"help": "Read rows as they are needed."})
    shuffle_buffer: int = field(default=5000, metadata={"help": "Rows a stream is shuffled in."})
    seq_length: int = field(default=1024, metadata={"help": "Tokens of a row."})
    max_steps: int = field(default=10000, metadata={"help": "Optimizer steps."})
    batch_size: int = field(default=4, metadata={"help": "Rows of a device's batch."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches of a step."})
    eos_token_id: int = field(
        default=49152, metadata={"help": "What joins texts if the tokenizer has no such token."}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "Its peak."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Its course."})
    num_warmup_steps: int = field(default=100, metadata={"help": "Steps it rises."})
    weight_decay: float = field(default=0.05, metadata={"help": "Of AdamW."})
    local_rank: int = field(
        default=0, metadata={"help": "What launchers pass; LOCAL_RANK, which they set, is read."}
    )
    no_fp16: bool = field(default=False, metadata={"help": "Compute in fp32."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bf16 and not in fp16."})
    no_gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Keep all activations."}
    )
    load_in_8bit: bool = field(
        default=True, metadata={"help": "Keep the base model in 8 bits; needs bitsandbytes."}
    )
    seed: int = field(default=0, metadata={"help": "Of all that is random."})
    num_workers: int | None = field(
        default=None, metadata={"help": "Processes that prepare what is not streamed."}
    )
    output_dir: str = field(default="./checkpoints", metadata={"help": "Where it all goes."})
    log_freq: int = field(default=1, metadata={"help": "Log after every so many steps."})
    eval_freq: int = field(default=1000, metadata={"help": "Evaluate as often."})
    save_freq: int = field(default=1000, metadata={"help": "Save a checkpoint as often."})


def make_trainer(args: ScriptArguments) -> SFTTrainer:
    tokenizer = AutoTokenizer.from_pretrained(args.model_path)
    train, held_out = stack_exchange.packed(tokenizer, args, args.seed, args.eos_token_id)
    config = SFTConfig(
        output_dir=args.output_dir,
        max_length=args.seq_length,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler_type,
        warmup_steps=args.num_warmup_steps,
        weight_decay=args.weight_decay,
        fp16=not (args.no_fp16 or args.bf16),
        bf16=args.bf16,
        gradient_checkpointing=not args.no_gradient_checkpointing,
        logging_steps=args.log_freq,
        eval_strategy="steps",
        eval_steps=args.eval_freq,
        save_steps=args.save_freq,
        seed=args.seed,
        model_init_kwargs={"device_map": get_kbit_device_map()} if args.load_in_8bit else None,
        run_name="llama-7b-finetuned",
    )
    return SFTTrainer(
        args.model_path,
        config,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True) if args.load_in_8bit else None,
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM"
        ),
    )


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train and save; the loss on held-out rows before and after."""
    offline, args = smoke.parse((ScriptArguments,), SMOKE, __doc__, argv)
    if offline.smoke is not None:
        model, args.dataset_name = stack_exchange.offline(offline.smoke)
        args.model_path = args.model_path or model
    if not args.model_path:
        raise SystemExit("--model_path is needed: a hub name or a folder")
    set_seed(args.seed)
    trainer = make_trainer(args)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    trainer.save_model(str(Path(args.output_dir) / "final_checkpoint"))
    trainer.accelerator.print(f"held-out loss: {before:.3f} before, {after:.3f} after")
    return {"before": before, "after": after}


if __name__ == "__main__":
    main()
