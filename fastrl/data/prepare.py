"""What preparing a dataset has in common: one cached pass, rows that can be named, what is said.

A trainer's pass is a callable object on batches of rows; the cache of `datasets` knows it by its
fields, so these are all that its result depends on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from datasets import Dataset, Features, IterableDataset, List, Value

from fastrl.data.formats import column_names, is_message
from fastrl.data.masks import assistant_masks
from fastrl.data.tokenize import Messages, encode_chats, over_equal

logger = logging.getLogger(__name__)
TokenLists = list[list[int]]
TOKENS = List(Value("int32"))
_told: set[str] = set()


def tell_once(topic: str, message: str, *values: Any) -> None:
    """Warn, the first time this process meets the topic."""
    if topic not in _told:
        _told.add(topic)
        logger.warning(message, *values)


@dataclass(frozen=True)
class Rows:
    """A batch of a dataset's rows."""

    dataset: str  # what it is called: train, eval, …
    columns: Mapping[str, list[Any]]  # N values each
    numbers: Sequence[int]  # N: which rows of the dataset these are

    def __len__(self) -> int:
        return len(self.numbers)

    def wrong(self, row: int, column: str, problem: str) -> ValueError:
        """The error that names a row of the batch, its column, and what to do about it."""
        return ValueError(
            f"row {self.numbers[row]} of the {self.dataset} dataset: {column!r} {problem}"
        )

    def _each(self, column: str, fits: Callable[[Any], bool], wanted: str) -> list[Any]:
        values = self.columns[column]
        for row, value in enumerate(values):
            if value is None:
                raise self.wrong(row, column, "is None; fill it in or filter the row out")
            if not fits(value):
                problem = f"holds {type(value).__name__} where earlier rows hold {wanted}"
                raise self.wrong(row, column, f"{problem}; convert the column with dataset.map")
        return values

    def texts(self, column: str) -> list[str]:
        """The column, every cell checked to be a string."""
        return self._each(column, lambda value: isinstance(value, str), "text")

    def chats(self, column: str) -> list[Messages]:
        """The column, every cell checked to be a list of messages; in `role`/`content` spelling."""
        chats = self._each(column, lambda value: isinstance(value, list), "lists of messages")
        converted = []
        for row, chat in enumerate(chats):
            chat = [_in_chatml(message) for message in chat]
            if not all(is_message(message) for message in chat):
                problem = "holds a message without a role; each is {'role': …, 'content': …}"
                raise self.wrong(row, column, problem)
            converted.append(chat)
        return converted

    def lists(self, column: str) -> list[list[Any]]:
        """The column, every cell checked to be a list."""
        return self._each(column, lambda value: isinstance(value, list), "lists of tokens")

    def template_arguments(self) -> list[dict[str, Any]]:
        """Per row what its chat template gets besides messages: `tools`, `chat_template_kwargs`."""
        nothing = [None] * len(self)
        tools = self.columns.get("tools", nothing)
        others = self.columns.get("chat_template_kwargs", nothing)
        arguments = []
        for row, (tool, other) in enumerate(zip(tools, others, strict=True)):
            if isinstance(tool, str):
                tool = self._parsed(row, tool)
            arguments.append({"tools": tool, **(other or {})})
        return arguments

    def _parsed(self, row: int, tools: str) -> Any:
        try:
            return json.loads(tools)
        except ValueError as error:
            raise self.wrong(row, "tools", f"is a string that is not JSON: {error}") from error

    def encode_chats(
        self,
        processing_class: Any,
        column: str,
        chats: list[Messages],
        add_generation_prompt: bool = False,
    ) -> TokenLists:
        """Token ids of conversations of these rows; a row the template refuses is named."""

        def encode(chats: list[Messages], arguments: list[dict[str, Any]]) -> TokenLists:
            return encode_chats(processing_class, chats, arguments, add_generation_prompt)

        return self._each_chat(encode, column, chats)

    def encode_assistant(
        self, processing_class: Any, column: str, chats: list[Messages]
    ) -> list[tuple[list[int], list[int]]]:
        """(ids, mask) of each conversation, 1 on the assistant's tokens; a row without is named."""

        def encode(
            chats: list[Messages], arguments: list[dict[str, Any]]
        ) -> list[tuple[list[int], list[int]]]:
            def masked(some: list[Messages], **options: Any) -> list[Any]:
                return list(zip(*assistant_masks(some, processing_class, **options), strict=True))

            return over_equal(masked, chats, arguments)

        found = self._each_chat(encode, column, chats)
        for row, (_, mask) in enumerate(found):
            if 1 not in mask:
                problem = "has no assistant tokens to learn under assistant_only_loss=True"
                raise self.wrong(row, column, problem)
        return found

    def _each_chat(
        self, encode: Callable[..., list[Any]], column: str, chats: list[Messages]
    ) -> list[Any]:
        """All conversations in one call; if it fails, one by one to find the row."""
        arguments = self.template_arguments()
        for row, chat in enumerate(chats):
            if not chat:
                raise self.wrong(row, column, "has no messages; filter the row out")
        try:
            return encode(chats, arguments)
        except Exception:
            for row, chat in enumerate(chats):
                try:
                    encode([chat], [arguments[row]])
                except Exception as error:
                    raise self.wrong(row, column, f"cannot be rendered: {error}") from error
            raise


def _in_chatml(message: Any) -> Any:
    if not isinstance(message, dict) or "from" not in message:
        return message
    renamed = {"from": "role", "value": "content"}
    return {renamed.get(key, key): value for key, value in message.items()}


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


@dataclass(frozen=True)
class Pass:
    """The function that `dataset.map` calls: a trainer's step, and columns to take along."""

    step: Callable[[Rows], tuple[dict[str, list[Any]], list[int] | None]]
    dataset: str
    kept: tuple[str, ...]
    streamed: bool
    lost: str

    def __call__(self, batch: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        rows = Rows(self.dataset, batch, numbers)
        columns, left = self.step(rows)
        if left is None or len(left) == len(rows):
            return {**{name: batch[name] for name in self.kept}, **columns}
        if self.streamed:
            lost = next(row for row in range(len(rows)) if row not in set(left))
            tell_once(
                f"dropped from {self.dataset}",
                "rows of the %s dataset are dropped: %s. The first is row %d.",
                self.dataset,
                self.lost,
                numbers[lost],
            )
        columns = {name: batch[name] for name in self.kept} | columns
        return {name: [values[row] for row in left] for name, values in columns.items()}


def map_rows(
    dataset: Any,
    step: Callable[[Rows], tuple[dict[str, list[Any]], list[int] | None]],
    made: Mapping[str, Any],
    *,
    name: str,
    num_proc: int | None,
    kept: Sequence[str] = (),
    lost: str = "",
) -> Any:
    """One cached pass over the rows.

    Args:
        dataset: `Dataset` or `IterableDataset`.
        step: rows -> new columns, and which rows of the batch stay (None: all).
        made: the new columns and their feature types.
        name: what the dataset is called.
        num_proc: processes, for a `Dataset`.
        kept: columns to take along as they are.
        lost: why a row is dropped, to say how many were.

    Raises:
        ValueError: no row is left.
    """
    kept = tuple(column for column in kept if column not in made)
    old = column_names(dataset)
    features = dataset.features
    if features is not None or not kept:
        features = Features({**{column: features[column] for column in kept}, **made})
    streamed = isinstance(dataset, IterableDataset)
    work = Pass(step, name, kept, streamed, lost)
    options = {"batched": True, "with_indices": True, "remove_columns": old, "features": features}
    if streamed:
        return dataset.map(work, **options)
    prepared = dataset.with_format(None).map(
        work, **options, num_proc=num_proc, desc=f"Preparing {name} dataset"
    )
    dropped = len(dataset) - len(prepared)
    if dropped and not len(prepared):
        raise ValueError(f"no row of the {name} dataset is left of {dropped}: {lost}")
    if dropped:
        logger.warning(
            "%d of %d rows of the %s dataset dropped: %s", dropped, len(dataset), name, lost
        )
    return prepared
