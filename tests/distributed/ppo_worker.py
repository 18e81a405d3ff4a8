"""One rank of two: torchrun … ppo_worker.py WAY FOLDER; classic PPO, whole or under ZeRO.

Writes FOLDER/<rank>.json: statistics of the steps, with gradients as they are and clipped.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from tests.algos.two_ranks.worker import ROWS, make_trainer, rows, share
from tests.distributed import worker

CLIPPED = {"as they are": None, "clipped": 0.05, "scarcely clipped": 2.0}


def plugin(way: str) -> dict[str, Any]:
    """What gives the weights' places to the Accelerator."""
    if way == "ddp":
        return {}
    from accelerate import DeepSpeedPlugin

    config = {
        "zero_optimization": {"stage": int(way[-1])},
        "train_micro_batch_size_per_gpu": ROWS // 2,
        "gradient_accumulation_steps": 1,
        "zero_allow_untested_optimizer": True,
    }
    return {"deepspeed_plugin": DeepSpeedPlugin(hf_ds_config=config)}


def steps(way: str, rank: int, limit: float | None) -> list[dict[str, float]]:
    """Two steps on this rank's half of the rows."""
    batch = ROWS // 2
    settings = {"mini_batch_size": batch, "max_grad_norm": limit}
    trainer = make_trainer(batch, accelerator_kwargs=plugin(way), **settings)
    assert (trainer.accelerator.distributed_type == "DEEPSPEED") == (way != "ddp")
    found = [trainer.step(*share(rank, rows())) for _ in range(2)]
    return [
        {k: v for k, v in each.items() if isinstance(v, float) and not k.startswith("time/")}
        for each in found
    ]


def main() -> None:
    way, folder = sys.argv[1:]
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    if way != "ddp":
        worker.claim_devices()
    found: dict[str, Any] = {}
    try:
        for name, limit in CLIPPED.items():
            found[name] = steps(way, rank, limit)
            worker.AcceleratorState._reset_state()
    except Exception:
        found = {"error": traceback.format_exc()}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    os._exit("error" in found)  # gloo's threads may abort an ordinary exit


if __name__ == "__main__":
    main()
