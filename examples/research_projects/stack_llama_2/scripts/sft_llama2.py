"""StackLLaMA 2, stage 1: a LoRA adapter learns to answer questions of Stack Exchange.

    accelerate launch examples/research_projects/stack_llama_2/scripts/sft_llama2.py \\
        --output_dir sft --max_steps 500 --per_device_train_batch_size 4 --learning_rate 1e-4 \\
        --lr_scheduler_type cosine --warmup_steps 100 --optim paged_adamw_32bit --bf16 True
    python examples/research_projects/stack_llama_2/scripts/sft_llama2.py --smoke

Every option of SFTConfig can be given. Writes the adapter to OUTPUT_DIR/final_checkpoint and the
model with it merged in to OUTPUT_DIR/final_merged_checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import AutoTokenizer, BitsAndBytesConfig

sys.path.append(str(Path(__file__).resolve().parents[2]))
import smoke
import stack_exchange

from fastrl import SFTConfig, SFTTrainer, get_kbit_device_map, set_seed

SMOKE = {
    "seq_length": 64,
    "size_valid_set": 9,
    "streaming": False,
    "num_workers": None,
    "use_bnb": False,
    "max_steps": 40,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "logging_steps": 10,
    "bf16": False,
    "gradient_checkpointing": False,
    "output_dir": "runs/stack_llama_2/sft",
}


@dataclass
class ScriptArguments:
    """The model, its adapter and the rows."""

    model_name: str = field(
        default="meta-llama/Llama-2-7b-hf", metadata={"help": "Hub name or folder."}
    )
    dataset_name: str = field(
        default=stack_exchange.NAME, metadata={"help": "Hub name or folder of the rows."}
    )
    subset: str = field(default="data/finetune", metadata={"help": "Folder of the dataset."})
    split: str = field(default="train", metadata={"help": "Split of that folder."})
    size_valid_set: int = field(default=4000, metadata={"help": "Rows to evaluate on."})
    streaming: bool = field(default=True, metadata={"help": "Read rows as they are needed."})
    shuffle_buffer: int = field(default=5000, metadata={"help": "Rows a stream is shuffled in."})
    seq_length: int = field(default=1024, metadata={"help": "Tokens of a row."})
    num_workers: int | None = field(
        default=4, metadata={"help": "Processes that prepare what is not streamed."}
    )
    use_bnb: bool = field(
        default=True, metadata={"help": "Keep the base model in 4 bits; needs bitsandbytes."}
    )
    lora_alpha: float = field(default=16, metadata={"help": "Scale of the adapter."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before it."})
    lora_r: int = field(default=8, metadata={"help": "Its rank."})


def make_trainer(args: ScriptArguments, config: SFTConfig) -> SFTTrainer:
    tokenizer = AutoTokenizer.from_pretrained(args.model_name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    train, held_out = stack_exchange.packed(tokenizer, args, config.seed)
    quantization = None
    if args.use_bnb:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
        config.model_init_kwargs = {"device_map": get_kbit_device_map()}
    config.max_length = args.seq_length
    return SFTTrainer(
        args.model_name,
        config,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        quantization_config=quantization,
        peft_config=LoraConfig(
            r=args.lora_r,
            lora_alpha=args.lora_alpha,
            lora_dropout=args.lora_dropout,
            target_modules=["q_proj", "v_proj"],
            bias="none",
            task_type="CAUSAL_LM",
        ),
    )


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train and save; the loss on held-out rows before and after."""
    offline, args, config = smoke.parse((ScriptArguments, SFTConfig), SMOKE, __doc__, argv)
    if offline.smoke is not None:
        args.model_name, args.dataset_name = stack_exchange.offline(offline.smoke)
    set_seed(config.seed)
    trainer = make_trainer(args, config)
    before = trainer.evaluate()["eval_loss"]
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    after = trainer.evaluate()["eval_loss"]
    adapter = Path(config.output_dir) / "final_checkpoint"
    trainer.save_model(str(adapter))
    if trainer.is_world_process_zero():
        model, tokenizer = stack_exchange.merged(str(adapter))
        whole = Path(config.output_dir) / "final_merged_checkpoint"
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
    trainer.accelerator.print(f"held-out loss: {before:.3f} before, {after:.3f} after")
    return {"before": before, "after": after}


if __name__ == "__main__":
    main()
