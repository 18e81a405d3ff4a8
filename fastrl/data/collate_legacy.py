"""The collator of TRL 0.7 to 0.22 that finds completions in the tokens themselves."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fastrl.data.collate import IGNORED, DataCollatorForLanguageModeling, token_array


def _occurrences(ids: np.ndarray, template: np.ndarray) -> list[int]:
    """Columns where the template begins."""
    if len(ids) < len(template):
        return []
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(template))
    return np.flatnonzero((windows == template).all(axis=1)).tolist()


class DataCollatorForCompletionOnlyLM:
    """Pads rows and learns only what follows `response_template` in them.

    With one template the tokens after its last occurrence are learned. With an
    `instruction_template` too, each answer up to the next instruction is. A row without them is
    ignored, with a warning. Padding is ignored by its place: an end-of-sequence token that is also
    the padding token is learned (TRL ignored it).

    Prompt and completion in columns of their own (`completion_only_loss`) need no such search.

    Args:
        response_template: text or token ids that precede an answer.
        instruction_template: text or token ids that begin an instruction.
        tokenizer: encodes the templates, and has the padding token and side.
        mlm: must be False.
        ignore_index: label of the tokens that are not learned.
        padding_free: flatten the rows into one.
        pad_to_multiple_of: widths are multiples of this.
        return_tensors: only `pt`.

    Raises:
        ValueError: without a tokenizer or its padding token, for an empty template, or mlm=True.
    """

    def __init__(
        self,
        response_template: str | Sequence[int],
        instruction_template: str | Sequence[int] | None = None,
        tokenizer: Any = None,
        *,
        mlm: bool = False,
        ignore_index: int = IGNORED,
        padding_free: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str = "pt",
    ) -> None:
        if tokenizer is None:
            raise ValueError(
                "tokenizer is missing: DataCollatorForCompletionOnlyLM(…, tokenizer=…)"
            )
        if mlm:
            raise ValueError("mlm=True masks tokens at random and has no completions; leave it out")
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token; set tokenizer.pad_token")
        self.tokenizer = tokenizer
        self.mlm = mlm
        self.ignore_index = ignore_index
        self.padding_free = padding_free
        self.return_tensors = return_tensors
        self.response_template = response_template
        self.response_token_ids = self._encoded("response_template", response_template)
        self.instruction_template = instruction_template
        self.instruction_token_ids = None
        if instruction_template is not None:
            self.instruction_token_ids = self._encoded("instruction_template", instruction_template)
        self._collate = DataCollatorForLanguageModeling(
            tokenizer.pad_token_id,
            padding_free=padding_free,
            pad_to_multiple_of=pad_to_multiple_of,
        )

    def _encoded(self, name: str, template: str | Sequence[int]) -> list[int]:
        ids = template
        if isinstance(template, str):
            ids = self.tokenizer.encode(template, add_special_tokens=False)
        if not len(ids):
            raise ValueError(f"{name} is empty: {template!r}")
        return [int(token) for token in ids]

    def __call__(
        self, examples: Sequence[Any], return_tensors: str | None = None
    ) -> dict[str, Any]:
        """The batch of some rows: `input_ids`, or dicts that hold them (and `labels`)."""
        if (return_tensors or self.return_tensors) != "pt":
            raise ValueError(f"return_tensors must be 'pt', not {return_tensors!r}")
        return self.torch_call(examples)

    def torch_call(self, examples: Sequence[Any]) -> dict[str, Any]:
        """As the call itself, which subclasses override in this method."""
        rows = []
        for example in examples:
            example = example if isinstance(example, Mapping) else {"input_ids": example}
            ids = token_array(example["input_ids"])
            labels = token_array(example.get("labels", ids))
            rows.append({"input_ids": ids, "labels": np.where(self._learned(ids), labels, IGNORED)})
        batch = self._collate(rows)
        if self.tokenizer.padding_side == "left" and not self.padding_free:
            batch = _padded_in_front(batch)
        if self.ignore_index != IGNORED:
            batch["labels"][batch["labels"] == IGNORED] = self.ignore_index
        return batch

    def _learned(self, ids: np.ndarray) -> np.ndarray:
        """(T,) bool: the tokens of answers."""
        length = len(self.response_token_ids)
        found = _occurrences(ids, np.array(self.response_token_ids))
        answers = [begin + length for begin in found]
        learned = np.zeros(len(ids), dtype=bool)
        if not answers:
            self._warn("response", self.response_template, ids)
        elif self.instruction_token_ids is None:
            learned[answers[-1] :] = True
        else:
            starts = _occurrences(ids, np.array(self.instruction_token_ids))
            if not starts:
                self._warn("instruction", self.instruction_template, ids)
                return learned
            if starts[0] > answers[0]:
                starts = [0, *starts]
            self._between(learned, starts, answers)
        return learned

    @staticmethod
    def _between(learned: np.ndarray, starts: list[int], answers: list[int]) -> None:
        """Marks what lies after the k-th answer's begin and before the instruction after it."""
        learned[answers[0] :] = True
        for start, answer in list(zip(starts, answers, strict=False))[1:]:
            learned[start:answer] = False
        if len(answers) < len(starts):
            learned[starts[-1] :] = False

    def _warn(self, name: str, template: Any, ids: np.ndarray) -> None:
        warnings.warn(
            f"a row holds no {name} template {template!r} and is not learned; it begins with "
            f"{self.tokenizer.decode(ids[:64].tolist())!r}. Where rows are cut off before it, "
            "raise max_length; where it is tokenised otherwise in context, give its token ids.",
            stacklevel=4,
        )


def _padded_in_front(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch padded behind, padded in front."""
    spans = batch["spans"]
    width = spans.shape[1]
    shifts = [width - length for length in spans.lengths]
    moved = {
        name: torch.stack([row.roll(shift) for row, shift in zip(batch[name], shifts, strict=True)])
        for name in ("input_ids", "labels", "attention_mask")
    }
    return {**moved, "spans": replace(spans, starts=shifts)}
