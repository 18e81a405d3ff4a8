"""Flags of the example scripts of TRL 0.7.0 to 0.7.10, in today's words.

Those scripts wrote `--model_name --seq_length --batch_size --log_with --peft_lora_r`, and nested
ones: `--reward_config.learning_rate`, `--peft_config.r`, `--no-use-peft`. Later ones have the flags
of the dataclasses, which know their own older spellings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from fastrl.legacy.changes import Change, Converted, Ignored, Refused, Renamed, Table

# --reward_config.max_length is --max_length, --peft_config.r is --lora_r.
NESTED = ("args", "reward_config", "peft_config")
LORA = {
    "bias": "lora_bias",
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "modules_to_save": "lora_modules_to_save",
    "task_type": "lora_task_type",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
# A choice between peft_config and none, which scripts of that time took as a word by itself.
LORA_WORD = re.compile(r"peft[-_]config:(lora[-_]config|none)", re.IGNORECASE)
_HUB_TOKEN = "the token of `hf auth login` or HF_TOKEN is used where there is one"


def _trackers(name: Any) -> dict[str, Any]:
    return {"report_to": "none" if str(name).lower() == "none" else name}


def _precision(kind: str | bool) -> dict[str, Any]:
    if kind is False:
        kind = "no"  # which YAML reads as False
    if kind not in ("no", "fp16", "bf16"):
        raise ValueError(f"mixed_precision={kind}: it is no, fp16 or bf16")
    return {"fp16": kind == "fp16", "bf16": kind == "bf16"}


def _evaluation(split: str) -> dict[str, Any]:
    if split == "none":
        return {"eval_strategy": "no"}
    return {"dataset_test_split": split, "eval_strategy": "steps"}


def _reentrant(reentrant: bool) -> dict[str, Any]:
    return {"gradient_checkpointing_kwargs": json.dumps({"use_reentrant": reentrant})}


_TOKEN: Change = Ignored(_HUB_TOKEN)
FLAGS: Table = {
    "batch_size": Renamed("per_device_train_batch_size"),
    "dataset_test_name": Renamed("dataset_test_split"),  # of 0.8
    "dataset_train_name": Renamed("dataset_train_split"),
    "dataset_text_field": Ignored("the columns of the dataset say what is what"),
    "eval_split": Converted(_evaluation, "dataset_test_split= and eval_strategy="),
    "gradient_checkpointing_use_reentrant": Converted(
        _reentrant, "gradient_checkpointing_kwargs='{\"use_reentrant\": ...}'"
    ),
    "lora_bias": Refused("biases are not trained with the adapter", ("none",)),
    "log_with": Converted(_trackers, "report_to="),
    "mixed_precision": Converted(_precision, "fp16= or bf16="),
    "model_name": Renamed("model_name_or_path"),
    "peft_lora_alpha": Renamed("lora_alpha"),
    "peft_lora_r": Renamed("lora_r"),
    "seq_length": Renamed("max_length"),
    "target_modules": Renamed("lora_target_modules"),
    "token": _TOKEN,
    "use_auth_token": _TOKEN,
}
# Flags that no later script has: with one of them the defaults are those of that time.
FIRST_ONLY = {
    "batch_size",
    "eval_split",
    "log_with",
    "model_name",
    "peft_lora_alpha",
    "peft_lora_r",
    "seq_length",
    "use_auth_token",
}


def name_of(word: str) -> str:
    """`--reward-config.max-length=8` -> `reward_config.max_length`; "" for what is no flag."""
    return word.partition("=")[0][2:].replace("-", "_") if word.startswith("--") else ""


def is_of_first_scripts(words: Iterable[str]) -> bool:
    """Whether a word is a flag that only scripts up to 0.7.10 had."""
    names = {name_of(word) for word in words}
    return bool(names & FIRST_ONLY) or any(name.split(".")[0] in NESTED for name in names)


def flat(words: Sequence[str]) -> list[str]:
    """The words with nested flags as plain ones, and without `peft_config:lora_config`.

    Raises:
        ValueError: a setting of the adapter that cannot be honoured.
    """
    found: list[str] = []
    for word in words:
        section, dot, name = name_of(word).partition(".")
        if LORA_WORD.fullmatch(word):
            continue
        if not dot or section not in NESTED:
            found.append(word)
            continue
        if section == "peft_config":
            if name not in LORA:
                raise ValueError(f"{word}: of an adapter these can be set: {', '.join(LORA)}")
            name = LORA[name]
        found.append(f"--{name}" + "".join(word.partition("=")[1:]))
    return found


def positive(words: Iterable[str], flags: Collection[str]) -> list[str]:
    """`--no-use-peft` as `--use_peft False`, where the parser knows only the latter."""
    found: list[str] = []
    for word in words:
        plain = re.sub(r"(^|\.)no_", r"\1", name_of(word), count=1)
        if word not in flags and plain != name_of(word) and f"--{plain}" in flags:
            found += [f"--{plain}", "False"]
        else:
            found.append(word)
    return found
