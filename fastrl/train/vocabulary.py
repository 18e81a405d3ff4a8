"""Token ids a model knows, checked on the host before a device can read past its embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from torch import nn

COLUMNS = ("input_ids", "prompt_ids", "completion_ids", "chosen_ids", "rejected_ids")
_ROWS = 10_000  # read at a time


def check_ids(name: str, dataset: Any, model: nn.Module) -> None:
    """Refuse prepared rows with ids outside the model's embeddings; a stream is not looked at.

    Raises:
        ValueError: naming dataset, row, column and id.
    """
    if not isinstance(dataset, Dataset):
        return
    columns = [column for column in COLUMNS if column in dataset.column_names]
    known = model.get_input_embeddings().num_embeddings
    if not columns:
        return
    for number, table in enumerate(dataset.with_format("arrow").iter(_ROWS)):
        for column in columns:
            row = _first_outside(table[column].combine_chunks(), known)
            if row is not None:
                ids = np.asarray(table[column][row].as_py())
                worst = ids[(ids < 0) | (ids >= known)][0]
                raise ValueError(
                    f"{name} row {number * _ROWS + row}: {column} holds the id {worst}, but the "
                    f"model has embeddings for {known} tokens; use its own tokenizer, or call "
                    "model.resize_token_embeddings(len(tokenizer))"
                )


def _first_outside(lists: Any, known: int) -> int | None:
    """The first list that holds an id outside [0, known), or None."""
    values = pc.list_flatten(lists)
    if len(values) == 0:
        return None
    extremes = pc.min_max(values)
    if extremes["min"].as_py() >= 0 and extremes["max"].as_py() < known:
        return None
    outside = pc.or_(pc.less(values, 0), pc.greater_equal(values, known))
    first = pc.index(outside, pa.scalar(True)).as_py()
    return pc.list_parent_indices(lists)[first].as_py()
