"""PRMTrainer and PRMConfig as they were called in TRL 0.13 to 0.28."""

from __future__ import annotations

from fastrl.legacy.binding import LegacyInit
from fastrl.legacy.changes import Refused, Renamed, Table
from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS

PRM = LegacyInit(
    order=(
        "model",
        "args",
        "data_collator",
        "train_dataset",
        "eval_dataset",
        "tokenizer",
        "model_init",
        "compute_metrics",
        "callbacks",
        "optimizers",
        "preprocess_logits_for_metrics",
        "peft_config",
    ),
    changes={
        "tokenizer": Renamed("processing_class"),
        "model_init": Refused("pass the model itself: model=model_init()"),
    },
    first="0.11",
)

PRM_FIELDS: Table = TRAINING_ARGUMENTS
