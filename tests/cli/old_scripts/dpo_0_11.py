"""DPO as it was written for TRL 0.11: a DPOConfig, but the tokenizer under its old name."""

import json
import sys

import trl
from datasets import Dataset
from packaging.version import Version
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer


def main(folder, out):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    reference = AutoModelForCausalLM.from_pretrained(folder)
    rows = {"prompt": ["one ", "two ", "three ", "four "] * 2}
    rows |= {"chosen": ["yes it is"] * 8, "rejected": ["no"] * 8}
    config = DPOConfig(
        out,
        per_device_train_batch_size=2,
        eval_strategy="no",
        max_steps=3,
        logging_steps=1,
        learning_rate=1e-3,
        max_length=32,
        max_prompt_length=16,
        loss_type="sigmoid",
        use_cpu=True,
    )
    trainer = DPOTrainer(
        model,
        reference,
        beta=0.2,
        args=config,
        train_dataset=Dataset.from_dict(rows),
        tokenizer=tokenizer,
    )
    trainer.train()
    margins = [r["rewards/margins"] for r in trainer.state.log_history if "rewards/margins" in r]
    with open(f"{out}/report.json", "w") as file:
        new = Version(trl.__version__) >= Version("0.12")
        json.dump({"margins": margins, "beta": trainer.args.beta, "new": new}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
