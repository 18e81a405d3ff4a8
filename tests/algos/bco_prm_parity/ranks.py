"""One rank of BCO and PRM runs: torchrun … ranks.py FOLDER; writes FOLDER/<rank>.pt."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

import fastrl
from tests.algos.bco_prm_parity import running
from tests.algos.bco_prm_parity.regression import regression
from tests.algos.bco_prm_parity.running import Case
from tests.algos.offline_parity.running import numbers
from tests.two_ranks import leave

CASES = (
    Case("bco", "BCO", matched=True, reference=True, steps=3),
    Case("prm", "PRM", steps=3),
)
SGD = {"optim": "sgd", "learning_rate": 0.02}


def train(world: int, folder: Path) -> dict[str, Any]:
    """Eight rows a step over all ranks; what each case logged, and its weights."""
    found = {}
    for case in CASES:
        sizes = {"per_device_train_batch_size": 8 // world}
        with regression():
            trainer = running.trainer_of(
                case, fastrl, str(folder / case.name), config={**SGD, **sizes}
            )
        assert trainer.accelerator.num_processes == world
        trainer.train()
        model = trainer.accelerator.unwrap_model(trainer.model)
        logs = numbers(trainer.state.log_history)
        found[case.name] = {"logs": logs, "weights": model.state_dict()}
    return found


def main() -> None:
    """Run as this rank."""
    folder = Path(sys.argv[1])
    torch.save(train(int(os.environ["WORLD_SIZE"]), folder), folder / f"{os.environ['RANK']}.pt")
    leave()


if __name__ == "__main__":
    main()
