"""One rank of `IterativeSFTTrainer`: torchrun … worker.py FOLDER; writes FOLDER/<rank>.pt."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import transformers
from ppo_parity.running import fill, make_tokenizer, tiny_config

from fastrl.algos.iterative_sft import IterativeSFTTrainer
from fastrl.algos.iterative_sft_config import IterativeSFTConfig
from tests.two_ranks import leave

# Rows of one length: each batch's loss is a mean over its own tokens.
ROWS = list(torch.randint(3, 60, (8, 6), generator=torch.Generator().manual_seed(0)))


def trainer_of(folder: Path, world: int) -> IterativeSFTTrainer:
    """Over a Llama of fixed weights, eight rows a step over all ranks."""
    model = transformers.LlamaForCausalLM(tiny_config("llama"))
    fill(model, 1)
    args = IterativeSFTConfig(
        str(folder / "run"),
        per_device_train_batch_size=8 // world,
        max_steps=4,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        logging_steps=2,
        report_to="none",
    )
    trainer = IterativeSFTTrainer(model, args, processing_class=make_tokenizer("right"))
    assert trainer.accelerator.num_processes == world
    return trainer


def train(folder: Path, rank: int, world: int) -> dict[str, Any]:
    """Two steps; the weights and the logged loss."""
    trainer = trainer_of(folder, world)
    own = ROWS[rank * 8 // world : (rank + 1) * 8 // world]
    for _ in range(2):
        trainer.step(own)
    model = trainer.accelerator.unwrap_model(trainer.model)
    logs = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"weights": model.state_dict(), "logs": logs, "trainer": trainer}


def refused(trainer: IterativeSFTTrainer, rows: list[torch.Tensor]) -> str:
    """What a step with these rows raises here."""
    try:
        trainer.step(rows)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main() -> None:
    """Run as this rank."""
    warnings.simplefilter("ignore")
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    found = train(folder, rank, 2)
    trainer = found.pop("trainer")
    found["uneven"] = refused(trainer, ROWS[: rank + 1])
    found["one_bad"] = refused(trainer, [ROWS[0], torch.tensor([3, 64] if rank else [3, 4])])
    torch.save(found, folder / f"{rank}.pt")
    leave()


if __name__ == "__main__":
    main()
