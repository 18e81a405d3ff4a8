"""IterativeSFTTrainer as it was called in TRL 0.7 to 0.19."""

from __future__ import annotations

from fastrl.legacy.binding import LegacyInit
from fastrl.legacy.changes import Moved, Renamed, Table
from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS

ITERATIVE_SFT = LegacyInit(
    order=(
        "model",
        "args",
        "tokenizer",
        "optimizers",
        "data_collator",
        "eval_dataset",
        "max_length",
        "truncation_mode",
        "preprocess_logits_for_metrics",
        "compute_metrics",
        "optimize_device_cache",
    ),
    changes={
        "tokenizer": Renamed("processing_class"),
        "max_length": Moved("max_length"),
        "truncation_mode": Moved("truncation_mode"),
        "optimize_device_cache": Moved("optimize_device_cache"),
    },
)

ITERATIVE_SFT_FIELDS: Table = TRAINING_ARGUMENTS
