"""Conversations whose last turn is the answer, looked at before anything is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

_ROWS = 1000  # read at once
_ASKING = ("user", "system")
_WANTED = "must be a list of messages {'role': …, 'content': …}"


def require_conversations(name: str, dataset: Any) -> None:
    """Refuse rows that are neither conversations nor token ids with their prompt.

    Rows that are made as they are asked for are not looked at.

    Args:
        name: what the dataset is called.
        dataset: with a column `messages`, or `input_ids` and `prompt`.

    Raises:
        ValueError: naming the columns, or the first row that does not end with an answer.
    """
    columns = getattr(dataset, "column_names", None)
    if columns is None or ("messages" not in columns and {"input_ids", "prompt"} <= set(columns)):
        return
    if "messages" not in columns:
        raise ValueError(
            f"{name} has the columns {', '.join(columns)}; rows need messages (a conversation), "
            "or input_ids and prompt (a text)"
        )
    if _is_stored(dataset):
        least = 1 if "prompt" in columns else 2
        _last_turns(name, dataset, least)


def longest_answers(dataset: Any, count: int) -> list[int]:
    """The rows with the longest last turns, by characters; none where rows are not stored."""
    if not (_is_stored(dataset) and "messages" in dataset.column_names):
        return []
    return np.argsort(-_last_turns("", dataset, 0), kind="stable")[:count].tolist()


def _is_stored(dataset: Any) -> bool:
    return isinstance(dataset, Dataset) and dataset.format["type"] != "custom"


def _last_turns(name: str, dataset: Dataset, least: int) -> np.ndarray:
    """(rows,) characters of the last turns of conversations of `least` turns; 0: all are."""
    found, start = [np.zeros(0, dtype=np.int64)], 0
    for table in dataset.select_columns(["messages"]).with_format("arrow").iter(_ROWS):
        chats = table["messages"].combine_chunks()
        if not (_is_list(chats.type) and _has_role(chats.type.value_type)):
            _require_messages(name, start, dataset[start]["messages"])
            return np.zeros(len(dataset), dtype=np.int64)  # kept in a form of their own
        turns = pc.fill_null(pc.list_value_length(chats), 0).to_numpy(zero_copy_only=False)
        if (turns < least).any():
            row = start + int((turns < least).argmax())
            _require_turns(name, row, dataset[row]["messages"], least)
        last = pc.list_flatten(chats).take(pa.array((turns.cumsum() - 1)[turns > 0]))
        roles = pc.struct_field(last, "role").to_pylist()
        for place, role in enumerate(roles if least else ()):
            if role in _ASKING:
                raise ValueError(
                    f"{name} row {start + place}: its last turn is the {role}'s, but the last turn "
                    "is the answer that is learnt; end it with the assistant's, or leave it out"
                )
        lengths = np.zeros(len(turns), dtype=np.int64)
        lengths[turns > 0] = [len(str(message.get("content"))) for message in last.to_pylist()]
        found.append(lengths)
        start += len(turns)
    return np.concatenate(found)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _has_role(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("role") >= 0


def _require_messages(name: str, row: int, given: Any) -> None:
    if not isinstance(given, list) or not all(isinstance(m, dict) and "role" in m for m in given):
        raise ValueError(f"{name} row {row}: messages {_WANTED}, got {given!r:.80}")


def _require_turns(name: str, row: int, given: Any, least: int) -> None:
    _require_messages(name, row, given)
    if len(given) < least:
        raise ValueError(
            f"{name} row {row}: messages has {len(given)} turns, but needs {least} or more: a "
            "question and its answer; leave the row out"
        )
