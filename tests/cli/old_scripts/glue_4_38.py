"""Text classification as it was written for transformers 4.38: flags, an own loss, noise."""

import json
import os
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)


@dataclass
class DataArguments:
    model_name_or_path: str
    task_name: str = None
    max_seq_length: int = 32


class CustomTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs.get("logits")
        weight = torch.tensor([1.0, 2.0, 3.0], device=model.device)
        loss_fct = nn.CrossEntropyLoss(weight=weight)
        loss = loss_fct(logits.view(-1, self.model.config.num_labels), labels.view(-1))
        return (loss, outputs) if return_outputs else loss


data, training_args = HfArgumentParser(
    (DataArguments, TrainingArguments)
).parse_args_into_dataclasses()
tokenizer = AutoTokenizer.from_pretrained(data.model_name_or_path)
model = AutoModelForSequenceClassification.from_pretrained(
    data.model_name_or_path, num_labels=3, ignore_mismatched_sizes=True
)
rows = [
    {**tokenizer("ab" * n, max_length=data.max_seq_length, truncation=True), "labels": n % 3}
    for n in range(1, 25)
]
trainer = CustomTrainer(
    model,
    training_args,
    DataCollatorWithPadding(tokenizer),
    train_dataset=rows[:16] if training_args.do_train else None,
    eval_dataset=rows[16:] if training_args.do_eval else None,
    tokenizer=tokenizer,
)
noise = []
model.get_input_embeddings().register_forward_hook(
    lambda module, *_: noise.append((len(module._forward_hooks) > 1, module.training))
)
trainer.train()
noise.append("trained")
found = trainer.evaluate()
trainer.save_model()
with open(os.path.join(training_args.output_dir, "report.json"), "w") as file:
    json.dump({"eval_loss": found["eval_loss"], "noise": noise, "task": data.task_name}, file)
