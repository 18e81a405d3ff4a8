"""Prompts in the order online trainers take them: each G times, each batch as often as it is used.

With G = 2, two prompts a batch and each batch twice: a a b b, a a b b, c c d d, c c d d.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sized
from typing import Any

import torch
from datasets import IterableDataset
from torch.utils.data import Sampler


class RepeatSampler(Sampler[int]):
    """Indices of a dataset, repeated; an incomplete last batch is left out.

    Every epoch has an order of its own, found from seed and epoch alone, so that a run resumed in
    its second epoch meets the prompts of the run that was never stopped.

    Args:
        data_source: the dataset.
        mini_repeat_count: how often each index stands in a batch (G).
        batch_size: different indices in a batch.
        repeat_count: how often each batch is given.
        shuffle: whether the order is random.
        seed: what it depends on; None: torch's default seed.
    """

    def __init__(
        self,
        data_source: Sized,
        mini_repeat_count: int,
        batch_size: int = 1,
        repeat_count: int = 1,
        shuffle: bool = True,
        seed: int | None = None,
    ) -> None:
        self.data_source = data_source
        self.num_samples = len(data_source)
        self.mini_repeat_count = mini_repeat_count
        self.batch_size = batch_size
        self.repeat_count = repeat_count
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch, counted from 0."""
        self.epoch = epoch

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.num_samples))
        generator = torch.Generator()
        if self.seed is not None:
            generator.manual_seed(self.seed)
        for _ in range(self.epoch):  # the orders of the epochs before come from the same stream
            torch.randperm(self.num_samples, generator=generator)
        return torch.randperm(self.num_samples, generator=generator).tolist()

    def __iter__(self) -> Iterator[int]:
        """The indices of the present epoch."""
        order = self._order()
        for start in range(0, self._whole, self.batch_size):
            batch = order[start : start + self.batch_size]
            for _ in range(self.repeat_count):
                for index in batch:
                    yield from [index] * self.mini_repeat_count

    @property
    def _whole(self) -> int:
        return self.num_samples // self.batch_size * self.batch_size

    def __len__(self) -> int:
        return self._whole * self.mini_repeat_count * self.repeat_count


def repeat_iterable_dataset(
    dataset: IterableDataset, mini_repeat_count: int, batch_size: int = 1, repeat_count: int = 1
) -> IterableDataset:
    """`RepeatSampler`'s order for a stream, which has to be shuffled before."""

    def repeated(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        count = len(next(iter(columns.values())))
        if count < batch_size:
            return {name: [] for name in columns}
        rows = [i for i in range(count) for _ in range(mini_repeat_count)] * repeat_count
        return {name: [copy.deepcopy(given[i]) for i in rows] for name, given in columns.items()}

    return dataset.map(repeated, batched=True, batch_size=batch_size)
