"""PRMTrainer and PRMConfig as they were called in TRL 0.13 to 0.28."""

from __future__ import annotations

from fastrl.legacy.binding import LegacyInit
from fastrl.legacy.changes import Table
from fastrl.legacy.trainer_arguments import TRAINER_CHANGES, TRAINER_ORDER
from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS

PRM = LegacyInit(
    order=(*TRAINER_ORDER, "peft_config"),
    changes=TRAINER_CHANGES,
    first="0.11",
)

PRM_FIELDS: Table = TRAINING_ARGUMENTS
