"""One rank of a run on two: torchrun … ranks.py FOLDER [NashMD] [balance_ranks]; rank 0 writes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.algos.online_dpo_parity import cases, running
from tests.algos.online_parity import making
from tests.algos.two_model_parity import cases as two_model_parity
from tests.two_ranks import leave


def give(trainer: Any, script: running.Script) -> None:
    """Answers that are the same on whichever rank a prompt is."""
    alike = SimpleNamespace(state=trainer.state, accelerator=SimpleNamespace(process_index=0))
    making.give_completions(trainer, script)
    plain = script.answers
    script.answers = lambda ids, _: plain(ids, alike)


def run(
    folder: Path, world: int, given: dict[str, Any], name: str = "OnlineDPO"
) -> dict[str, list[float]]:
    """Eight prompts a step, over all ranks and two micro-batches."""
    import fastrl

    case, metrics = cases.ALL[0], running.METRICS
    if name == "NashMD":
        case = two_model_parity.ALL[0]
        metrics = two_model_parity.metrics(case)

    class Counted(getattr(fastrl, f"{name}Trainer")):
        def train(self) -> Any:
            assert self.accelerator.num_processes == world
            return super().train()

    settings = {
        "per_device_train_batch_size": 4 // world,
        "gradient_accumulation_steps": 2,
        "shuffle_dataset": False,
        **given,
    }
    config = getattr(fastrl, f"{name}Config")
    return running.run_in(folder, case, Counted, config, give, metrics, **settings)


def read(folder: Path) -> dict[str, list[float]]:
    """What rank 0 logged."""
    return json.loads((folder / "logs.json").read_text())


def main() -> None:
    """Run as this rank."""
    torch.set_num_threads(1)
    folder, *flags = sys.argv[1:]
    name = flags.pop(0) if flags[:1] == ["NashMD"] else "OnlineDPO"
    logs = run(Path(folder), int(os.environ["WORLD_SIZE"]), dict.fromkeys(flags, True), name)
    if os.environ["RANK"] == "0":
        (Path(folder) / "logs.json").write_text(json.dumps(logs))
    leave()


if __name__ == "__main__":
    main()
