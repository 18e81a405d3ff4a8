"""`transformers.Trainer`'s arguments in their old order, which SFT, Reward and PRM began with."""

from __future__ import annotations

from fastrl.legacy.changes import Refused, Renamed, Table

TRAINER_ORDER = (
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
)

TRAINER_CHANGES: Table = {
    "tokenizer": Renamed("processing_class"),
    "model_init": Refused("pass the model itself: model=model_init()"),
}
