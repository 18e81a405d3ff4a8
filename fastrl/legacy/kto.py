"""KTOTrainer and KTOConfig as they were called in TRL 0.11 (fields: to 1.0)."""

from __future__ import annotations

from fastrl.legacy.binding import LegacyInit
from fastrl.legacy.changes import Ignored, Table
from fastrl.legacy.pairs import PAIRED_ARGUMENTS, PAIRED_FIELDS
from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS, defaults_of

KTO = LegacyInit(
    order=(
        "model",
        "ref_model",
        "args",
        "train_dataset",
        "eval_dataset",
        "tokenizer",
        "data_collator",
        "model_init",
        "callbacks",
        "optimizers",
        "preprocess_logits_for_metrics",
        "peft_config",
        "compute_metrics",
        "model_adapter_name",
        "ref_adapter_name",
    ),
    changes=PAIRED_ARGUMENTS,
    defaults={"max_length": 512},
    first="0.11",
)

KTO_DEFAULTS = defaults_of(learning_rate=5e-7, max_length=512)

KTO_FIELDS: Table = {
    **TRAINING_ARGUMENTS,
    **PAIRED_FIELDS,
    "truncation_mode": Ignored("rows longer than max_length are cut at their end"),
}
