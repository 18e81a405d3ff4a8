"""One rank of an offline run: torchrun … worker.py TASK KIND FOLDER; writes FOLDER/<rank>.pt."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tests.algos.offline_parity import making
from tests.train.offline_runs import build
from tests.two_ranks import leave


def more(kind: str) -> dict[str, Any]:
    """What a kind is given besides."""
    if kind == "cpo":  # its NLL is a mean of each micro-batch, in TRL too, not of the whole step
        return {"cpo_alpha": 0.0}
    if kind.startswith("gkd"):
        drawn = float(kind == "gkd_drawn")
        return {"teacher_model": making.model("llama"), "lmbda": drawn, "max_new_tokens": 6}
    return {}


class Poison(TrainerCallback):
    """A NaN in one weight of rank 1 alone, before the third step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step == 2 and args.process_index == 1:
            next(model.parameters()).data[5, 3] = math.nan


def train(world: int, kind: str, folder: Path, callbacks: list[Any]) -> dict[str, Any]:
    """Eight rows a step over all ranks; what was logged, and the weights."""
    trainer = build(
        folder / "run",
        kind.removesuffix("_drawn"),
        per_device_train_batch_size=8 // world,
        optim="sgd",
        learning_rate=0.1,
        **more(kind),
        callbacks=callbacks,
    )
    assert trainer.accelerator.num_processes == world
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {"logs": trainer.state.log_history, "weights": model.state_dict()}


def bad(kind: str, folder: Path) -> dict[str, Any]:
    """What this rank raises when rank 1's model gives NaN."""
    poison = Poison()
    try:
        train(2, kind, folder, [poison])
    except FloatingPointError as error:
        return {"raised": str(error)}
    return {"raised": None}


def main() -> None:
    """Run the task as this rank."""
    task, kind, folder = sys.argv[1:]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    place = Path(folder)
    result = train(world, kind, place, []) if task == "train" else bad(kind, place)
    torch.save(result, place / f"{rank}.pt")
    leave()


if __name__ == "__main__":
    main()
