"""The packed stream of TRL 0.4 to 0.22: texts joined and cut in rows of one length."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import torch
from torch.utils.data import IterableDataset


class ConstantLengthDataset(IterableDataset):
    """Rows of exactly `seq_length` tokens from a stream of texts.

    Texts are gathered until they hold about `num_of_sequences` rows, tokenised, joined and cut;
    what remains of such a buffer is dropped. Rows of a buffer are shuffled by Python's `random`.
    `pack_dataset` packs whole texts instead and drops none.

    Args:
        tokenizer: encodes the texts.
        dataset: rows that hold the texts; its length is reported as this dataset's.
        dataset_text_field: the column of the text.
        formatting_func: row -> text, instead of the column.
        infinite: begin anew at the end.
        seq_length: tokens a row has.
        num_of_sequences: rows a buffer holds, about.
        chars_per_token: what "about" rests on.
        eos_token_id: joins texts if the tokenizer has no such token.
        shuffle: shuffle the rows of each buffer.
        append_concat_token: end each text with the end-of-sequence token.
        add_special_tokens: let the tokenizer add its special tokens to each text.

    Raises:
        ValueError: neither a column nor a function gives the text; while iterating: the dataset is
            empty.
    """

    def __init__(
        self,
        tokenizer: Any,
        dataset: Any,
        dataset_text_field: str | None = None,
        formatting_func: Callable[[Any], str] | None = None,
        infinite: bool = False,
        seq_length: int = 1024,
        num_of_sequences: int = 1024,
        chars_per_token: float = 3.6,
        eos_token_id: int = 0,
        shuffle: bool = True,
        append_concat_token: bool = True,
        add_special_tokens: bool = True,
    ) -> None:
        if dataset_text_field is None and formatting_func is None:
            raise ValueError("give dataset_text_field, the column of the text, or formatting_func")
        self.tokenizer = tokenizer
        self.dataset = dataset
        self.infinite = infinite
        self.seq_length = seq_length
        self.shuffle = shuffle
        self.append_concat_token = append_concat_token
        self.add_special_tokens = add_special_tokens
        self.max_buffer_size = seq_length * chars_per_token * num_of_sequences
        self.current_size = 0
        self.text_field = dataset_text_field
        self.formatting_func = formatting_func
        self.concat_token_id = tokenizer.eos_token_id
        if self.concat_token_id is None:
            warnings.warn(
                f"the tokenizer has no end-of-sequence token; texts are joined by {eos_token_id} "
                "(eos_token_id)",
                stacklevel=2,
            )
            self.concat_token_id = eos_token_id

    def __len__(self) -> int:
        return len(self.dataset)

    def _text(self, row: Any) -> str:
        return self.formatting_func(row) if self.formatting_func else row[self.text_field]

    def _texts(self) -> Iterator[str]:
        while True:
            empty = True
            for row in self.dataset:
                empty = False
                yield self._text(row)
            if empty:
                raise ValueError("the dataset to pack is empty")
            if not self.infinite:
                return
            warnings.warn("the dataset to pack has ended and begins anew", stacklevel=2)

    def _buffers(self) -> Iterator[list[str]]:
        buffer: list[str] = []
        size = 0
        for text in self._texts():
            buffer.append(text)
            size += len(text)
            if size >= self.max_buffer_size:
                yield buffer
                buffer, size = [], 0
        if buffer:
            yield buffer

    def _rows(self, buffer: list[str]) -> list[list[int]]:
        encoded = self.tokenizer(
            buffer, add_special_tokens=self.add_special_tokens, truncation=False, verbose=False
        )
        joined: list[int] = []
        for ids in encoded["input_ids"]:
            joined += ids
            if self.append_concat_token:
                joined.append(self.concat_token_id)
        whole = len(joined) // self.seq_length * self.seq_length
        return [joined[i : i + self.seq_length] for i in range(0, whole, self.seq_length)]

    def _shuffled(self) -> Iterator[list[int]]:
        for buffer in self._buffers():
            rows = self._rows(buffer)
            if self.shuffle:
                random.shuffle(rows)
            for row in rows:
                self.current_size += 1
                yield row

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for row in self._shuffled():
            yield {"input_ids": torch.tensor(row), "labels": torch.tensor(row)}

    def rows(self) -> datasets.Dataset | datasets.IterableDataset:
        """`input_ids` and `labels`: a stream where it is infinite, else all rows at once.

        Raises:
            ValueError: all texts together fill no row.
        """
        if self.infinite:
            return datasets.IterableDataset.from_generator(self._listed)
        found = list(self._listed())
        if not found:
            raise ValueError(f"the texts together do not fill one row of {self.seq_length} tokens")
        return datasets.Dataset.from_list(found)

    def _listed(self) -> Iterator[dict[str, list[int]]]:
        for row in self._shuffled():
            yield {"input_ids": row, "labels": row}
