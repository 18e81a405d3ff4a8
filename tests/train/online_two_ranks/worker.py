"""A rank of online runs of every kind: torchrun … worker.py FOLDER; writes FOLDER/<rank>.pt."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset

from fastrl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from fastrl.rollout import Completion
from fastrl.train.drawing import Drawing
from tests.algos.offline_parity.making import model, tokenizer
from tests.two_ranks import leave

PROMPTS = ["abc", "hello you", "9 + 3 is what", "xy"]
GROUP = 4

# name -> trainer, settings; the steps of all are small, and all rows of a step in one slice
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("GRPO", {"loss_type": "grpo", "beta": 0.1}),
    "dapo": ("GRPO", {}),
    "dr_grpo": ("GRPO", {"loss_type": "dr_grpo"}),
    "iterations": ("GRPO", {"num_iterations": 2}),
    "quantile": ("GRPO", {"top_entropy_quantile": 0.5}),
    "rloo": ("RLOO", {}),
    "balanced": ("GRPO", {"balance_ranks": True, "gradient_accumulation_steps": 2}),
    "unbalanced": ("GRPO", {"gradient_accumulation_steps": 2}),
    "lively": ("GRPO", {"dynamic_sampling": True}),
}


def scripted(self: Drawing, prompts: list[Any], room: Any = None) -> list[Completion]:
    """Answers that follow from prompt, step and place in the group, whichever rank asks."""
    trainer, seen = self._trainer, {}
    found = []
    for ids in prompts:
        key = tuple(ids)
        # Ranks hold neighbouring parts of the groups.
        number = seen.get(key, _first_number(trainer, len(prompts)))
        seen[key] = number + 1
        noise = torch.Generator().manual_seed(hash((*key, trainer.state.global_step, number)))
        length = int(torch.randint(1, 12, (), generator=noise))
        drawn = torch.randint(5, 75, (length,), generator=noise).tolist()
        found.append(Completion((*drawn, 1), None, None, "eos"))
    return found


def _first_number(trainer: Any, rows: int) -> int:
    """The place in its group of the first row of this rank."""
    return trainer.accelerator.process_index * rows % GROUP


def judge(completions: list[str], **_: Any) -> list[float]:
    """The share of vowels and digits."""
    return [sum(c in "aeiou0123456789" for c in text) / max(len(text), 1) for text in completions]


def train(kind: str, world: int, folder: Path) -> dict[str, Any]:
    """Sixteen rows a generation batch over all ranks; what was logged, and the weights."""
    name, given = KINDS[kind]
    config, trainer_class = {"GRPO": (GRPOConfig, GRPOTrainer), "RLOO": (RLOOConfig, RLOOTrainer)}[
        name
    ]
    accumulation = given.get("gradient_accumulation_steps", 1)
    trainer = trainer_class(
        model(),
        judge,
        config(
            str(folder / "run"),
            **{
                "per_device_train_batch_size": 16 // world // accumulation,
                "num_generations": GROUP,
                "max_completion_length": 16,
                "max_steps": 4,
                "optim": "sgd",
                "learning_rate": 0.1,
                "logging_steps": 1,
                "use_cpu": True,
                "report_to": "none",
                "save_strategy": "no",
                "disable_tqdm": True,
                "gradient_checkpointing": False,
                **given,
            },
        ),
        Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer(),
    )
    assert trainer.accelerator.num_processes == world
    work = []
    compute = trainer.compute_loss

    def spy(model: Any, inputs: Any, *args: Any, **keywords: Any) -> torch.Tensor:
        work.append(int(inputs["completion_mask"].sum()))
        return compute(model, inputs, *args, **keywords)

    trainer.compute_loss = spy
    with patch.object(Drawing, "complete", scripted):  # put back, for tests in the same process
        trainer.train()
    inner = trainer.accelerator.unwrap_model(trainer.model)
    return {"logs": trainer.state.log_history, "weights": inner.state_dict(), "work": work}


def main() -> None:
    """Run all kinds as this rank."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    place = Path(sys.argv[1])
    torch.save({kind: train(kind, world, place) for kind in KINDS}, place / f"{rank}.pt")
    leave()


if __name__ == "__main__":
    main()
