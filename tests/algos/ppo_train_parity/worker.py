"""One rank of the two-rank case with fastrl: torchrun … worker.py FOLDER; writes FOLDER/RANK.pt."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler

import fastrl
from tests.algos.ppo_train_parity.cases import TWO_RANKS
from tests.algos.ppo_train_parity.running import rows_of_a_batch, run
from tests.two_ranks import leave


def interleaved(orders: list[list[list[int]]], size: int) -> list[list[int]]:
    """One dataset whose batches go to the ranks in turn, from the prompts of each rank."""
    starts = range(0, len(orders[0]), size)
    return [row for start in starts for order in orders for row in order[start : start + size]]


def main() -> None:
    """Train as this rank."""
    place = Path(sys.argv[1])
    torch.set_num_threads(1)
    orders = torch.load(place / "orders.pt")
    weights: dict[str, torch.Tensor] = {}
    trainers: list[Any] = []

    def prepare(trainer: Any) -> None:
        assert trainer.accelerator.num_processes == 2
        trainer._get_train_sampler = lambda _=None: SequentialSampler(trainer.train_dataset)
        trainers.append(trainer)

    found = run(TWO_RANKS, fastrl, interleaved(orders, rows_of_a_batch(TWO_RANKS)), prepare)
    for name, parameter in trainers[0].model.named_parameters():
        weights[name] = parameter.detach().clone()
    torch.save({**found, "weights": weights}, place / f"{os.environ['RANK']}.pt")
    leave()


if __name__ == "__main__":
    main()
