"""Batches on which collators are compared with TRL's; needs neither library."""

from __future__ import annotations

import random
from typing import Any

import torch


def _ids(source: random.Random, longest: int = 9) -> list[int]:
    return [source.randint(1, 99) for _ in range(source.randint(1, longest))]


def language_rows(seed: int, labelled: bool, packed: bool) -> list[dict[str, Any]]:
    source = random.Random(seed)
    rows = []
    for _ in range(4):
        row: dict[str, Any] = {"input_ids": _ids(source)}
        count = len(row["input_ids"])
        if labelled:
            row["labels"] = [t if source.random() < 0.6 else -100 for t in row["input_ids"]]
        if packed:
            first = source.randint(1, count)
            row["seq_lengths"] = [first, count - first] if count > first else [first]
        rows.append(row)
    return rows


def pair_rows(scored: bool) -> list[dict[str, Any]]:
    source = random.Random(3)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [{name: _ids(source) for name in names} for _ in range(3)]
    for i, row in enumerate(rows if scored else []):
        row |= {"ref_chosen_logps": -1.5 * i, "ref_rejected_logps": -0.25}
    return rows


def marked_rows(kl: bool) -> list[dict[str, Any]]:
    source = random.Random(4)
    rows: list[dict[str, Any]] = []
    for i in range(3):
        row: dict[str, Any] = {"prompt_ids": _ids(source), "completion_ids": _ids(source)}
        if kl:
            row |= {"KL_completion_ids": _ids(source), "ref_logps": -i, "ref_KL_logps": -0.5 * i}
        rows.append({**row, "label": i != 1})
    return rows


def reward_rows(margin: bool) -> list[dict[str, Any]]:
    source = random.Random(5)
    rows: list[dict[str, Any]] = []
    for i in range(3):
        start = _ids(source, 4)
        row = {"chosen_ids": start + _ids(source), "rejected_ids": start + _ids(source)}
        rows.append({**row, "margin": 0.5 * i} if margin else row)
    return rows


def batches(language: Any, pairs: Any, marked: Any, rewards: Any) -> dict[str, dict[str, Any]]:
    """What the four collator classes make of the rows, by a name."""
    made = {}
    for multiple in (None, 8):
        for flat in (False, True):
            for positions in (False, True):
                for packed in (False, True):
                    rows = language_rows(len(made), labelled=not positions, packed=packed)
                    collate = language(
                        7,
                        padding_free=flat,
                        return_position_ids=positions,
                        pad_to_multiple_of=multiple,
                    )
                    name = f"language {multiple} flat={flat} {positions=} {packed=}"
                    made[name] = collate(rows)
    for length, mode in ((None, "keep_start"), (7, "keep_start"), (7, "keep_end")):
        collate = pairs(7, max_length=length, truncation_mode=mode, pad_to_multiple_of=None)
        made[f"pairs {length} {mode}"] = collate(pair_rows(scored=length is None))
    made["pairs multiple"] = pairs(7, pad_to_multiple_of=8)(pair_rows(False))
    for length in (None, 6):
        for kl in (False, True):
            made[f"marked {length} {kl=}"] = marked(7, max_length=length)(marked_rows(kl))
    for margin in (False, True):
        collate = rewards(7, pad_to_multiple_of=8 if margin else None)
        made[f"rewards {margin=}"] = collate(reward_rows(margin))
    return made


def plain(batch: dict[str, Any]) -> list[list[Any]]:
    """A batch as JSON holds it, in the order of its keys, with dtypes."""
    return [
        [key, str(value.dtype).removeprefix("torch."), value.tolist()]
        if torch.is_tensor(value)
        else [key, type(value).__name__, value]
        for key, value in batch.items()
    ]
