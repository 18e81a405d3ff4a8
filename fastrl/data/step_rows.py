"""The rows of one call of `step()`: token ids or texts, with labels or without, checked and cut."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Column
from transformers import PreTrainedTokenizerBase

from fastrl.data.collate import IGNORED

Row = dict[str, torch.Tensor]  # input_ids, attention_mask, labels


@dataclass(frozen=True)
class StepRows:
    """How given rows become tokens.

    Attributes:
        tokenizer: encodes texts, cutting them on its own truncation side.
        is_encoder_decoder: labels are rows of their own, else as long as their input.
        max_length: longer rows are cut to it; None: no limit.
        keep_end: which part of a row stays.
        vocabulary: ids must be below it; None: unknown.
    """

    tokenizer: PreTrainedTokenizerBase
    is_encoder_decoder: bool
    max_length: int | None
    keep_end: bool
    vocabulary: int | None

    def __call__(
        self, input_ids: Any, attention_mask: Any, labels: Any, texts: Any, texts_labels: Any
    ) -> list[Row]:
        """Rows of three 1-D int64 tensors, cut to the maximal length, without masked tokens.

        Without labels a row learns all its tokens but the padding token, unless that is also the
        end-of-sequence token: then all.

        Raises:
            ValueError: naming the argument and row: neither ids nor texts, no labels for an
                encoder-decoder, no list, elements of another kind, lengths that differ, ids outside
                the vocabulary, an empty row.
        """
        if input_ids is None and texts is None:
            raise ValueError("step() needs input_ids= or texts=")
        if self.is_encoder_decoder and labels is None and texts_labels is None:
            raise ValueError(
                "step() of an encoder-decoder needs labels= or texts_labels=, what it is to answer"
            )
        if texts is not None:
            if input_ids is not None:
                warnings.warn("step() got texts= too: input_ids are not used", stacklevel=4)
            input_ids, attention_mask = self._encoded("texts", texts), None
        if texts_labels is not None:
            labels = self._encoded("texts_labels", texts_labels)
        ids = _tensors("input_ids", input_ids)
        masks = None if attention_mask is None else _tensors("attention_mask", attention_mask)
        wanted = None if labels is None else _tensors("labels", labels)
        self._check(ids, masks, wanted)
        return [
            self._row(
                row, None if masks is None else masks[i], None if wanted is None else wanted[i]
            )
            for i, row in enumerate(ids)
        ]

    def _encoded(self, name: str, texts: Any) -> list[torch.Tensor]:
        texts = _listed(name, texts, str, "strings")
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length)
        return [torch.tensor(ids, dtype=torch.int64) for ids in encoded["input_ids"]]

    def _check(
        self,
        ids: list[torch.Tensor],
        masks: list[torch.Tensor] | None,
        labels: list[torch.Tensor] | None,
    ) -> None:
        aligned = {"attention_mask": masks}
        if not self.is_encoder_decoder:
            aligned["labels"] = labels
        for name, others in {"attention_mask": masks, "labels": labels}.items():
            if others is not None and len(others) != len(ids):
                raise ValueError(f"{name} has {len(others)} rows, and there are {len(ids)} inputs")
        for name, others in aligned.items():
            for row, (one, other) in enumerate(zip(ids, others or [], strict=False)):
                if len(one) != len(other):
                    raise ValueError(
                        f"{name} row {row} has {len(other)} tokens, and its input {len(one)}: one "
                        "for each token is needed"
                    )
        for row, one in enumerate(ids):
            if not len(one) or (masks is not None and not masks[row].any()):
                raise ValueError(f"input_ids row {row} is empty")
            self._check_ids("input_ids", row, one)
        for row, one in enumerate(labels or []):
            self._check_ids("labels", row, one[one != IGNORED])

    def _check_ids(self, name: str, row: int, ids: torch.Tensor) -> None:
        above = torch.zeros_like(ids, dtype=torch.bool)
        if self.vocabulary is not None:
            above = ids >= self.vocabulary
        wrong = ids[(ids < 0) | above]
        if len(wrong):
            raise ValueError(
                f"{name} row {row} holds {int(wrong[0])}, outside the model's vocabulary of "
                f"{self.vocabulary}: was it made by the model's own tokenizer?"
            )

    def _row(
        self, ids: torch.Tensor, mask: torch.Tensor | None, labels: torch.Tensor | None
    ) -> Row:
        pad = self.tokenizer.pad_token_id
        if labels is None:
            padding = ids == (-1 if pad == self.tokenizer.eos_token_id or pad is None else pad)
            labels = ids.masked_fill(padding, IGNORED)
        elif self.is_encoder_decoder and pad is not None:
            labels = labels.masked_fill(labels == pad, IGNORED)
        if mask is not None:
            there = mask.bool()
            labels = labels if self.is_encoder_decoder else labels[there]
            ids = ids[there]
        ids, labels = self._cut(ids), self._cut(labels)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    def _cut(self, row: torch.Tensor) -> torch.Tensor:
        if self.max_length is None:
            return row
        return row[-self.max_length :] if self.keep_end else row[: self.max_length]


def _listed(name: str, values: Any, kind: type, called: str) -> Sequence[Any]:
    """A list of elements of one kind; a dataset's column is read whole."""
    if isinstance(values, Column):
        values = list(values)
        if kind is torch.Tensor and values and isinstance(values[0], list):
            values = [torch.tensor(row) for row in values]
    if not isinstance(values, list):
        raise ValueError(f"{name} must be a list of {called}, got {type(values).__name__}")
    if not values:
        raise ValueError(f"{name} is empty: give at least one row")
    for row, value in enumerate(values):
        if not isinstance(value, kind):
            raise ValueError(
                f"{name} must be a list of {called}, but row {row} is {type(value).__name__}"
            )
    return values


def _tensors(name: str, values: Any) -> list[torch.Tensor]:
    rows = _listed(name, values, torch.Tensor, "tensors")
    for row, value in enumerate(rows):
        if value.dim() != 1 or value.is_floating_point():
            raise ValueError(
                f"{name} row {row} must be 1-D and of whole numbers, got "
                f"{value.dtype} {tuple(value.shape)}"
            )
    return [value.detach().cpu().long() for value in rows]
