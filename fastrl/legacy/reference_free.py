"""ORPO's and CPO's trainers and configs as they were called in TRL 0.8 to 0.28: alike."""

from __future__ import annotations

from fastrl.legacy.binding import LegacyInit
from fastrl.legacy.changes import Ignored, Refused, Renamed, Table
from fastrl.legacy.trainer_arguments import TRAINER_ORDER
from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS, defaults_of

_DEFAULTS = {"max_length": 512, "max_prompt_length": 128}

REFERENCE_FREE = LegacyInit(
    order=(
        *(name for name in TRAINER_ORDER if name != "compute_metrics"),
        "peft_config",
        "compute_metrics",
    ),
    changes={"tokenizer": Renamed("processing_class")},
    defaults=_DEFAULTS,
    first="0.11",
)

REFERENCE_FREE_DEFAULTS = defaults_of(**_DEFAULTS)

REFERENCE_FREE_FIELDS: Table = {
    **TRAINING_ARGUMENTS,
    "max_target_length": Ignored("max_completion_length cuts answers"),
    "label_pad_token_id": Refused("ignored positions are -100", (-100,)),
}
