"""KTOTrainer and KTOConfig as they were called in TRL 0.11 (fields: to 1.0)."""

from __future__ import annotations

from fastrl.legacy.binding import LegacyInit
from fastrl.legacy.changes import Ignored, Refused, Table
from fastrl.legacy.pairs import PAIRED_ARGUMENTS, PAIRED_FIELDS, PAIRED_ROWS
from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS, defaults_of

_BCO = "it was of the loss 'bco', an algorithm of its own since TRL 0.10: write BCOTrainer"

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
    changes={
        **PAIRED_ARGUMENTS,
        "embedding_func": Refused(_BCO),
        "embedding_tokenizer": Refused(_BCO),
    },
    defaults={"max_length": 512},
    first="0.11",
    rows=PAIRED_ROWS,
)

KTO_DEFAULTS = defaults_of(learning_rate=5e-7, max_length=512)

KTO_FIELDS: Table = {
    **TRAINING_ARGUMENTS,
    **PAIRED_FIELDS,
    "max_density_ratio": Refused(_BCO, (10.0, 10)),
    "min_density_ratio": Refused(_BCO, (0.5,)),
    "prompt_sample_size": Refused(_BCO, (1024,)),
    "truncation_mode": Ignored("rows longer than max_length are cut at their end"),
}
