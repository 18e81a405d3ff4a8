"""RewardTrainer and RewardConfig as they were called in TRL 0.7 to 0.11."""

from __future__ import annotations

from fastrl.legacy.binding import LegacyInit
from fastrl.legacy.changes import Moved, Refused, Renamed, Table
from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS, defaults_of

REWARD = LegacyInit(
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
        "max_length",
        "peft_config",
    ),
    changes={
        "tokenizer": Renamed("processing_class"),
        "max_length": Moved("max_length"),
        "model_init": Refused("pass the model itself: model=model_init()"),
    },
    defaults={"max_length": None},  # rows came tokenised and were never cut or dropped
    once=("max_length",),
)

REWARD_DEFAULTS = defaults_of(max_length=None)

REWARD_FIELDS: Table = TRAINING_ARGUMENTS
