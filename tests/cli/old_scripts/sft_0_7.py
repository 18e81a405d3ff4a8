"""SFT as it was written for TRL 0.7: TrainingArguments, and the rest as keywords of the trainer."""

import json
import sys

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments
from trl import SFTTrainer
from trl.trainer.utils import DataCollatorForCompletionOnlyLM

folder, out = sys.argv[1:]
texts = [f"### Q: {n} and {n} ### A: {2 * n}" for n in range(8)]
model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="float32")
tokenizer = AutoTokenizer.from_pretrained(folder)

training_args = TrainingArguments(
    output_dir=out,  # where the model goes
    per_device_train_batch_size=2,
    evaluation_strategy="no",
    max_steps=3,
    logging_steps=1,
    warmup_ratio=0.1,
    overwrite_output_dir=True,
    no_cuda=True,
)
trainer = SFTTrainer(
    model,
    args=training_args,
    train_dataset=Dataset.from_dict({"text": texts}),
    dataset_text_field="text",
    max_seq_length=22,  # tokens
    tokenizer=tokenizer,
    data_collator=DataCollatorForCompletionOnlyLM("### A:", tokenizer=tokenizer),
)
trainer.train()
losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
with open(f"{out}/report.json", "w") as file:
    json.dump({"losses": losses, "max_length": trainer.args.max_length}, file)
