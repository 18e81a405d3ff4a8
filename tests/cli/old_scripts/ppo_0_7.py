"""PPO as it was written for TRL 0.7: a loop over step(), a value head, a classifier's scores."""

import json
import sys

import torch
from datasets import Dataset
from transformers import AutoTokenizer, pipeline
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, set_seed
from trl.core import LengthSampler

folder, judge, report = sys.argv[1:]
config = PPOConfig(
    model_name=folder,
    learning_rate=1e-3,
    batch_size=4,
    mini_batch_size=2,
    gradient_accumulation_steps=1,
    ppo_epochs=2,
    optimize_cuda_cache=True,
    remove_unused_columns=False,
)
set_seed(config.seed)
tokenizer = AutoTokenizer.from_pretrained(config.model_name, use_auth_token=False)
tokenizer.pad_token = tokenizer.eos_token
length = LengthSampler(2, 5)


def tokenize(row):
    row["input_ids"] = tokenizer.encode(row["text"])[: length()]
    row["query"] = tokenizer.decode(row["input_ids"])
    return row


dataset = Dataset.from_dict({"text": ["a good film", "a bad film", "so so", "the end"] * 2})
dataset = dataset.map(tokenize)
dataset.set_format(type="torch")


def collator(rows):
    return {key: [row[key] for row in rows] for key in rows[0]}


model = AutoModelForCausalLMWithValueHead.from_pretrained(config.model_name)
ref_model = AutoModelForCausalLMWithValueHead.from_pretrained(config.model_name)
trainer = PPOTrainer(config, model, ref_model, tokenizer, dataset=dataset, data_collator=collator)
pipe = pipeline("sentiment-analysis", model=judge, device=-1)
settings = {"return_all_scores": True, "function_to_apply": "none", "batch_size": 2}
sampling = {"min_length": -1, "top_k": 0.0, "top_p": 1.0, "do_sample": True}
sampling |= {"pad_token_id": tokenizer.eos_token_id, "max_new_tokens": 4}

seen = []
for batch in trainer.dataloader:
    answers = [trainer.generate(query, **sampling).squeeze() for query in batch["input_ids"]]
    batch["response"] = [tokenizer.decode(answer) for answer in answers]
    scores = pipe(
        [q + r for q, r in zip(batch["query"], batch["response"], strict=True)], **settings
    )
    rewards = [torch.tensor(score[1]["score"]) for score in scores]
    stats = trainer.step(batch["input_ids"], answers, rewards)
    trainer.log_stats(stats, batch, rewards)
    seen.append({"labels": [s[1]["label"] for s in scores], "kl": float(stats["objective/kl"])})

with open(report, "w") as file:
    json.dump({"steps": seen, "trainer": type(trainer).__module__}, file)
