"""PRM; offline, a small model learns to tell right steps of a solution from wrong ones.

Offline, from a folder of GSM8K and a model made by sft.py (a short SFT goes first without one):

    python examples/scripts/prm.py --dataset path/to/gsm8k --model runs/sft

To see that it runs: --smoke. With a hub:

    python examples/scripts/prm.py --model_name_or_path Qwen/Qwen2-0.5B \\
        --dataset_name trl-lib/math_shepherd --learning_rate 1e-5 --output_dir Qwen2-PRM

Offline the steps are a person's, and in half of the solutions a step has a wrong number: it and
those after it are wrong. It writes the model, log.jsonl, curves.png and report.md to --output_dir.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gsm8k
import sft
import torch
from command_line import Offline, Script
from datasets import Dataset

from fastrl import (
    ModelConfig,
    PRMConfig,
    PRMTrainer,
    get_peft_config,
    get_quantization_config,
)

OFFLINE = {
    "output_dir": "runs/prm",
    "max_steps": 100,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "learning_rate": 3e-4,
}
FIGURES = {"share of steps judged as they are": "accuracy", "loss": "loss"}


def with_a_wrong_step(steps: list[str], chance: random.Random) -> tuple[list[str], list[bool]]:
    """The steps with another number in one of them, and which are right."""
    numbered = [place for place, step in enumerate(steps) if re.search(r"\d+", step)]
    place = chance.choice(numbered)
    *_, last = re.finditer(r"\d+", steps[place])
    other = str(int(last.group()) + chance.randint(1, 9))
    step = steps[place][: last.start()] + other + steps[place][last.end() :]
    labels = [before < place for before in range(len(steps))]
    return [*steps[:place], step, *steps[place + 1 :]], labels


def stepwise(rows: list[dict[str, Any]]) -> Dataset:
    """Each problem with a person's steps, and with a wrong one among them."""
    chance = random.Random(0)
    found = []
    for row in rows:
        steps = [step for step in row["person"][0].split("\n") if step]
        spoilt, labels = with_a_wrong_step(steps, chance)
        for own, marks in ((steps, [True] * len(steps)), (spoilt, labels)):
            found.append({"prompt": row["question"] + "\n", "completions": own, "labels": marks})
    chance.shuffle(found)
    return Dataset.from_list(found)


@torch.no_grad()
def judged(trainer: PRMTrainer, row: dict[str, Any]) -> list[float]:
    """p(right) of each step of a row."""
    tokenizer, model = trainer.processing_class, trainer.accelerator.unwrap_model(trainer.model)
    model.eval()
    text, found = row["prompt"], []
    for step in row["completions"]:
        text += step + trainer.args.step_separator
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        found.append(model(ids.to(model.device)).logits[0, -1].softmax(0)[1].item())
    return found


def train_offline(
    offline: Offline, args: PRMConfig, model_args: ModelConfig
) -> dict[str, tuple[float, float]]:
    """Steps of solutions, right and wrong."""
    data, folder = Path(offline.dataset), Path(args.output_dir)
    rows, held_out = gsm8k.solved(data)
    model = offline.model or sft.short(offline, folder / "sft", args)
    args.model_init_kwargs = {**gsm8k.loading(model_args), **(args.model_init_kwargs or {})}
    shown = stepwise(held_out)
    trainer = PRMTrainer(
        model=model,
        args=args,
        train_dataset=stepwise(rows),
        eval_dataset=gsm8k.first(shown),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    shown = shown.select(range(3))
    judged_before = [judged(trainer, row) for row in shown]
    figures = gsm8k.train(trainer, FIGURES)
    samples = []
    for row, before in zip(shown, judged_before, strict=True):
        steps = zip(row["completions"], row["labels"], before, judged(trainer, row), strict=True)
        sample = {"problem": row["prompt"]}
        for number, (step, right, old, new) in enumerate(steps, 1):
            mark = "right" if right else "wrong"
            sample[f"step {number}, {mark}: {old:.2f} before and {new:.2f} after"] = step
        samples.append(sample)
    gsm8k.report(folder, "Steps of GSM8K judged", figures, samples, ("loss", "accuracy"))
    return figures


SMOKE = {"max_completion_length": 64}
SCRIPT = Script(PRMTrainer, PRMConfig, train_offline, __doc__, OFFLINE, smoke=SMOKE)


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]] | None:
    return SCRIPT.run(argv)


if __name__ == "__main__":
    main()
