"""Answers marked good or bad -> tokens for KTO, with another row's answer to each prompt."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, IterableDataset, Value

from fastrl.data.formats import column_names, detect_format, extract_prompt
from fastrl.data.prepare import TOKENS, Made, first_row, main_process_first, map_rows, only
from fastrl.data.prepare_preference import eos_of
from fastrl.data.rows import Rows, split_points, with_eos
from fastrl.data.tokenize import Encoder

logger = logging.getLogger(__name__)
UNPAIRED_KINDS = ("unpaired_preference", "preference", "preference_implicit")
_REFERENCE = ("ref_logps", "ref_KL_logps")
_MAP_ROWS = 1000  # rows a call of `map` sees, about


@dataclass(frozen=True)
class UnpairedRows:
    """Rows -> prompt_ids, completion_ids and label; a batch of pairs -> chosen, then rejected."""

    processing_class: Any
    kind: str
    conversational: bool
    eos: str | None
    max_length: int | None
    revision: int = 1  # part of the cache's key; raised when the same rows give others

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.processing_class)

    def __call__(self, rows: Rows) -> Made:
        prompts, completions, labels, origin = self.parts(rows)
        if not self.conversational:
            completions = with_eos(completions, self.eos)
        whole = [a + b for a, b in zip(prompts, completions, strict=True)]
        rows = rows.repeated(origin)
        if self.conversational:
            prompt_ids = rows.encode_prompts(self.encoder, prompts)
            ids = rows.encode_chats(self.encoder, "completion", whole, repeated=True)
        else:
            prompt_ids, ids = self.encoder.texts(prompts), self.encoder.texts(whole)
        points = split_points(rows, self.processing_class, prompt_ids, ids)
        columns: dict[str, list[Any]] = {
            "prompt_ids": [own[:k] for k, own in zip(points, prompt_ids, strict=True)],
            "completion_ids": [own[k:] for k, own in zip(points, ids, strict=True)],
            "label": labels,
        }
        limit = self.max_length
        left = [row for row, k in enumerate(points) if limit is None or k < limit]
        return only(columns, left), [origin[row] for row in left]

    def parts(self, rows: Rows) -> tuple[list[Any], list[Any], list[bool], list[int]]:
        """Prompts, completions, labels and the row each comes from."""
        read: Callable[[str], list[Any]] = rows.chats if self.conversational else rows.texts
        count = len(rows)
        if self.kind == "unpaired_preference":
            labels = rows.flags("label")
            return read("prompt"), read("completion"), labels, list(range(count))
        chosen, rejected = read("chosen"), read("rejected")
        if self.kind == "preference":
            prompts = read("prompt")
        else:
            pairs = zip(chosen, rejected, strict=True)
            split = [extract_prompt({"chosen": a, "rejected": b}) for a, b in pairs]
            prompts, chosen, rejected = (
                [row[side] for row in split] for side in ("prompt", "chosen", "rejected")
            )
        labels = [True] * count + [False] * count
        return prompts + prompts, chosen + rejected, labels, [*range(count), *range(count)]


def _with_other_answers(table: pa.Table, block: int) -> pa.Table:
    """Adds KL_completion_ids: in each block of rows the completion of the row before, in a ring."""
    rows = np.arange(len(table))
    first = rows // block * block
    last = np.minimum(first + block, len(table)) - 1
    before = np.where(rows == first, last, rows - 1)
    return table.append_column("KL_completion_ids", table["completion_ids"].take(pa.array(before)))


def _rotated(dataset: Any, block: int, name: str) -> Any:
    options: dict[str, Any] = {"batched": True, "fn_kwargs": {"block": block}}
    options["batch_size"] = block * max(1, _MAP_ROWS // block)
    if isinstance(dataset, Dataset):
        options["desc"] = f"Pairing prompts of {name} dataset with other answers"
    return dataset.with_format("arrow").map(_with_other_answers, **options).with_format(None)


def _advise_weights(prepared: Dataset, args: Any) -> None:
    """Warns where desirable and undesirable rows, as weighted, are out of balance.

    Eq. 8 of KTO (arXiv:2402.01306) wants desirable_weight * n_desirable between 1 and 4/3 times
    undesirable_weight * n_undesirable.
    """
    labels = prepared.with_format("numpy")["label"][:]
    good = max(int(np.sum(labels)), 1)
    bad = max(len(labels) - good, 1)
    ratio = args.desirable_weight * good / (args.undesirable_weight * bad)
    if good != bad and not 0.995 <= ratio <= 1.335:
        unit = args.undesirable_weight * bad / good
        logger.warning(
            "%d rows are desirable and %d are not, which weighted is a ratio of %.2f; between 1 "
            "and 1.33 is advised: a desirable_weight in [%.2f, %.2f], for one",
            *(good, bad, ratio, unit, 1.33 * unit),
        )


_MADE = {"prompt_ids": TOKENS, "completion_ids": TOKENS, "label": Value("bool")}


def prepare_unpaired(
    dataset: Dataset | IterableDataset,
    processing_class: Any,
    args: Any,
    name: str = "train",
    with_kl: bool | None = None,
) -> Dataset | IterableDataset:
    """Prompt, answer and label of every row, as TRL 1.16's KTOTrainer prepares them.

    Pairs become two rows, of each 1000 pairs first all chosen answers. Texts end with the
    end-of-sequence token; the answer begins where the tokens of prompt and prompt + answer part.
    Rows whose prompt leaves no room within `max_length` are dropped and counted. For the KL
    estimate each row then gets the answer of the row before, in a ring within blocks of
    `per_device_train_batch_size` rows, which the batches of a sequential sampler are.

    Args:
        dataset: `prompt`, `completion` and `label`, or pairs (see `prepare_preference`), texts or
            messages; `tools` and `chat_template_kwargs` per row; or what this returned.
        processing_class: tokenizer, or processor with one.
        args: a `KTOConfig`; read are max_length, loss_type, per_device_train_batch_size,
            desirable_weight, undesirable_weight, dataset_num_proc, remove_unused_columns.
        name: what to call the dataset; `train` is checked for balance.
        with_kl: whether to add `KL_completion_ids`; None means where `loss_type` is kto.

    Returns:
        Columns `prompt_ids`, `completion_ids`, `label`, `KL_completion_ids`, and `ref_logps` and
        `ref_KL_logps` where given; all others too if `remove_unused_columns=False`.

    Raises:
        ValueError: rows or columns that do not fit; they are named.
    """
    row, columns = first_row(dataset, name), column_names(dataset)
    with_kl = args.loss_type == "kto" if with_kl is None else with_kl
    if {*_MADE, *(["KL_completion_ids"] if with_kl else [])} <= set(columns):
        return dataset
    found = detect_format(columns, row, wanted=UNPAIRED_KINDS)
    step = UnpairedRows(
        processing_class=processing_class,
        kind=found.kind,
        conversational=found.conversational,
        eos=None if found.conversational else eos_of(processing_class),
        max_length=args.max_length,
    )
    kept = [column for column in _REFERENCE if column in columns]
    with main_process_first():
        prepared = map_rows(
            dataset,
            step,
            _MADE,
            name=name,
            num_proc=args.dataset_num_proc,
            kept=kept if args.remove_unused_columns else columns,
            fold=1 if found.kind == "unpaired_preference" else 2,
            lost=f"the prompt alone fills max_length={args.max_length} tokens",
        )
        if with_kl:
            prepared = _rotated(prepared, args.per_device_train_batch_size, name)
    if name == "train" and isinstance(prepared, Dataset):
        _advise_weights(prepared, args)
    return prepared
