"""GRPO as it is written for TRL 1.16."""

import json
import sys

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import get_soft_overlong_punishment


def vowels(completions, **kwargs):
    return [sum(letter in "aeiou" for letter in text) / 8 for text in completions]


def main():
    folder, out = sys.argv[1:]
    args = GRPOConfig(
        output_dir=out,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=6,
        max_steps=2,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
    )
    trainer = GRPOTrainer(
        model=folder,
        reward_funcs=[vowels, get_soft_overlong_punishment(6, 2)],
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["say a", "say b"]}),
    )
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    with open(f"{out}/report.json", "w") as file:
        json.dump({"rewards": rewards, "step": trainer.state.global_step}, file)


if __name__ == "__main__":
    main()
