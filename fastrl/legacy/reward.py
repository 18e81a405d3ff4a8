"""RewardTrainer and RewardConfig as they were called in TRL 0.7 to 0.11."""

from __future__ import annotations

from fastrl.legacy.binding import LegacyInit
from fastrl.legacy.changes import Moved, Table
from fastrl.legacy.trainer_arguments import TRAINER_CHANGES, TRAINER_ORDER
from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS, defaults_of

REWARD = LegacyInit(
    order=(*TRAINER_ORDER, "max_length", "peft_config"),
    changes={**TRAINER_CHANGES, "max_length": Moved("max_length")},
    defaults={"max_length": None},  # rows came tokenised and were never cut or dropped
    once=("max_length",),
)

REWARD_DEFAULTS = defaults_of(max_length=None)

REWARD_FIELDS: Table = TRAINING_ARGUMENTS
