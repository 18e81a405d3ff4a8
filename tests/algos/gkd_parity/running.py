"""One training run of a case, with `trl.experimental.gkd` of 1.16 or with `fastrl`."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from tests.algos.offline_parity import making
from tests.algos.offline_parity.running import BASE, numbers

ANSWER = 20  # tokens of every answer, drawn or not: TRL divides by those of the dataset


@dataclass(frozen=True)
class Case:
    """What differs from the base configuration."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    teacher: str = "llama"
    lora: bool = False
    evaluate: bool = False
    ragged: bool = True


CASES = [
    Case("jensen_shannon", {"gradient_accumulation_steps": 2}),
    Case("forward", {"beta": 0.0, "max_length": 40}),
    Case("reverse", {"beta": 1.0, "eval_strategy": "steps", "eval_steps": 5}, evaluate=True),
    Case("lora", {"beta": 0.2}, teacher="qwen2", lora=True),
    # A temperature near 0 draws the likeliest token on either side; the loss knows none.
    Case("student", {"lmbda": 1.0, "temperature": 1e-4, "beta": 0.3}, ragged=False),
    # The same, where the teacher never ends an answer before it is full.
    Case("either", {"lmbda": 0.5, "temperature": 1e-4, "seq_kd": True,
                    "gradient_accumulation_steps": 2}, teacher="qwen2", ragged=False),
]  # fmt: skip


def rows(count: int, ragged: bool, seed: int = 0) -> Dataset:
    """Conversations of two or four turns; unless ragged, all answers have ANSWER tokens."""
    random = np.random.RandomState(seed)
    made = []
    for i in range(count):
        question, answer = making.text(random, 8, 30), making.text(random, 30, 60)
        turns = [making.turn("user", question)]
        if i % 2:
            turns = [*turns, making.turn("assistant", answer[:9]), making.turn("user", question)]
        # The end of the turn and the line break behind it are learnt as well.
        length = random.randint(4, 30) if ragged else ANSWER - 2
        made.append({"messages": [*turns, making.turn("assistant", answer[:length])]})
    return Dataset.from_list(made)


def trainer_of(case: Case, trainer: Any, config: Any, folder: str) -> Any:
    """The case's trainer, ready to train."""
    torch.manual_seed(0)
    settings = {**BASE, "max_steps": 10, "lmbda": 0.0, "max_new_tokens": ANSWER, **case.config}
    data = {"train_dataset": rows(96, case.ragged)}
    if case.evaluate:
        data["eval_dataset"] = rows(10, case.ragged, seed=1)
    if case.lora:
        from peft import LoraConfig

        keywords = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"]}
        data["peft_config"] = LoraConfig(**keywords, lora_dropout=0.0, task_type="CAUSAL_LM")
    teacher = making.model(case.teacher)
    for parameter in teacher.parameters():
        parameter.data.mul_(1.5)
    return trainer(
        model=making.model("qwen2"),
        teacher_model=teacher,
        args=config(folder, **settings),
        processing_class=making.tokenizer(),
        **data,
    )


def run(case: Case, trainer: Any, config: Any) -> list[dict[str, float]]:
    """Train; one dict of numbers for each log."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = trainer_of(case, trainer, config, folder)
        made.train()
        return numbers(made.state.log_history)
