"""What preparing a dataset has in common: checks, one cached pass, what is said of dropped rows.

A trainer's pass is a callable object on batches of rows; the cache of `datasets` knows it by its
fields, so these are all that its result depends on.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from datasets import Dataset, Features, IterableDataset, List, Value

from fastrl.data.formats import column_names
from fastrl.data.rows import Rows, tell_once

logger = logging.getLogger(__name__)
TOKENS = List(Value("int32"))


@contextmanager
def main_process_first() -> Iterator[None]:
    """One process prepares and writes the cache, one per node where disks differ; others read."""
    state = PartialState()
    with state.main_process_first(), state.local_main_process_first():
        yield


def first_row(dataset: Any, name: str) -> dict[str, Any]:
    """The first row of a dataset that can be prepared.

    Raises:
        TypeError: it is no `Dataset` or `IterableDataset`.
        ValueError: it is empty, or computes its rows anew at each access (`with_transform`).
    """
    if not isinstance(dataset, Dataset | IterableDataset):
        raise TypeError(
            f"the {name} dataset must be a datasets.Dataset or IterableDataset, not "
            f"{type(dataset).__name__}; see Dataset.from_list, from_generator and load_dataset"
        )
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
        raise ValueError(
            f"the {name} dataset has a transform (`with_transform`), which may give other rows "
            "each time and cannot be cached; apply it for good with dataset.map, or let it return "
            " finished rows and pass dataset_kwargs={'skip_prepare_dataset': True}"
        )
    plain = dataset.with_format(None) if isinstance(dataset, Dataset) else dataset
    row = next(iter(plain), None)
    if row is None:
        raise ValueError(f"the {name} dataset is empty; check its split, path and filters")
    return row


# A batch's new columns, and for each of their rows the row of the batch it comes from.
Made = tuple[dict[str, list[Any]], Sequence[int]]


def only(columns: Mapping[str, list[Any]], rows: Sequence[int]) -> dict[str, list[Any]]:
    """The columns with these rows alone."""
    return {name: [values[row] for row in rows] for name, values in columns.items()}


@dataclass(frozen=True)
class _Pass:
    """The function that `dataset.map` calls: a trainer's step, and columns to take along."""

    step: Callable[[Rows], Made]
    dataset: str
    kept: tuple[str, ...]
    fold: int  # rows made of one that is not dropped
    lost: str | None  # why rows are dropped, to say here; None leaves that to the caller

    def __call__(self, batch: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        rows = Rows(self.dataset, batch, numbers)
        columns, origin = self.step(rows)
        if self.lost is not None and len(origin) < self.fold * len(rows):
            whole = Counter(origin)
            first = next(row for row in range(len(rows)) if whole[row] < self.fold)
            topic = f"dropped from {self.dataset}"
            said = "rows of the %s dataset are dropped: %s; the first is row %d"
            tell_once(topic, said, self.dataset, self.lost, numbers[first])
        return only({name: batch[name] for name in self.kept}, origin) | columns


def map_rows(
    dataset: Any,
    step: Callable[[Rows], Made],
    made: Mapping[str, Any],
    *,
    name: str,
    num_proc: int | None,
    kept: Sequence[str] = (),
    fold: int = 1,
    lost: str = "",
) -> Any:
    """One cached pass over the rows.

    Args:
        dataset: `Dataset` or `IterableDataset`.
        step: rows -> new columns, and the origin of each of their rows.
        made: the new columns and their feature types.
        name: what the dataset is called.
        num_proc: processes, for a `Dataset`.
        kept: columns to take along as they are.
        fold: how many rows are made of one.
        lost: why rows are dropped, for what is said of them.

    Raises:
        ValueError: no row is left.
    """
    kept = tuple(column for column in kept if column not in made)
    features = dataset.features
    if features is not None or not kept:
        features = Features({**{column: features[column] for column in kept}, **made})
    streamed = isinstance(dataset, IterableDataset)
    options = {
        "function": _Pass(step, name, kept, fold, lost if streamed else None),
        "batched": True,
        "with_indices": True,
        "remove_columns": column_names(dataset),
        "features": features,
    }
    if streamed:
        return dataset.map(**options)
    prepared = dataset.with_format(None).map(
        **options, num_proc=num_proc, desc=f"Preparing {name} dataset"
    )
    total = fold * len(dataset)
    if len(prepared) == 0:
        raise ValueError(f"none of the {total} rows of the {name} dataset is left: {lost}")
    if len(prepared) < total:
        dropped = total - len(prepared)
        logger.warning(
            "%d of %d rows of the %s dataset are dropped: %s", dropped, total, name, lost
        )
    return prepared
