"""Rows as TRL up to 0.11 read them, brought into the form that says the same today."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, IterableDataset

from fastrl.data.chat import tokenizer_of
from fastrl.data.formats import column_names
from fastrl.data.prepare import first_row, main_process_first

_TURNS = {"prompt": "user", "completion": "assistant"}


def _with_bos(row: dict[str, Any], bos: str) -> dict[str, Any]:
    prompt = row["prompt"]
    return {"prompt": prompt if prompt.startswith(bos) else bos + prompt}


def begin_with_bos(dataset: Any, processing_class: Any, name: str) -> Any:
    """Prompts that begin with the beginning-of-sequence token, where encoding adds none.

    Args:
        dataset: rows of pairs or of answers with labels; those without a `prompt` of text stay as
            they are.
        processing_class: tokenizer, or processor with one.
        name: what to call the dataset.
    """
    tokenizer = tokenizer_of(processing_class)
    bos = tokenizer.bos_token
    if bos is None or not isinstance(dataset, Dataset | IterableDataset):
        return dataset
    added = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    if added or not isinstance(first_row(dataset, name).get("prompt"), str):
        return dataset
    with main_process_first():
        return dataset.map(_with_bos, fn_kwargs={"bos": bos})


def _as_messages(row: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": row[c]} for c, role in _TURNS.items()]}


def texts_of_sft(dataset: Any, processing_class: Any, text_field: str, name: str) -> Any:
    """What SFT learned of a dataset: a column of text, or prompt and completion as one chat.

    Rows of `prompt` and `completion` and nothing else, both text, become messages of user and
    assistant, all of which is learned. A named column of text is taken whatever stands beside it.

    Args:
        dataset: rows.
        processing_class: tokenizer, or processor with one; without a chat template prompt and
            completion stay apart.
        text_field: the column of text that was asked for; "text" is nobody's choice.
        name: what to call the dataset.
    """
    if not isinstance(dataset, Dataset | IterableDataset):
        return dataset
    columns = column_names(dataset)
    if text_field != "text" and text_field in columns:
        return dataset.select_columns([text_field])
    template = getattr(processing_class, "chat_template", None)
    if set(columns) != set(_TURNS) or template is None:
        return dataset
    if not all(isinstance(value, str) for value in first_row(dataset, name).values()):
        return dataset
    with main_process_first():
        return dataset.map(_as_messages, remove_columns=columns)
