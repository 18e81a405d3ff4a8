"""Rows on which packing is compared with TRL's; needs no library but datasets."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from typing import Any

from datasets import Dataset

# Rows, capacity, longest row, whether the dataset is an indexed view (shuffled).
SHAPES = {
    "few": (6, 4, 6, False),
    "ragged": (400, 64, 60, False),
    "too long": (300, 32, 150, False),
    "several map batches": (2300, 48, 40, True),
    "all of one": (50, 1, 3, False),
    "equal lengths": (60, 9, 3, True),
}


def rows(name: str) -> Dataset:
    count, _, longest, shuffled = SHAPES[name]
    source = random.Random(name)
    low = longest if name.startswith("equal") else 0
    ids = [
        [source.randint(0, 99) for _ in range(source.randint(low, longest))] for _ in range(count)
    ]
    ids[0] = ids[0] or [1]
    labels = [[-100 if t % 3 else t for t in row] for row in ids]
    dataset = Dataset.from_dict({"input_ids": ids, "labels": labels})
    return dataset.shuffle(seed=3) if shuffled else dataset


def packed(pack: Callable[..., Any], name: str, streamed: bool) -> dict[str, Any]:
    """By strategy: rows, and a digest of them all."""
    out = {}
    for strategy in ("bfd", "bfd_split", "wrapped"):
        dataset = rows(name)
        if streamed:
            dataset = dataset.to_iterable_dataset()
        made = list(pack(dataset, SHAPES[name][1], strategy))
        text = json.dumps(made, sort_keys=True)
        out[strategy] = [len(made), hashlib.sha256(text.encode()).hexdigest()[:16]]
    return out
