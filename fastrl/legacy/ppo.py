"""PPOv2Trainer as it was called in TRL 0.11, and PPOTrainer in 0.12 and 0.13."""

from __future__ import annotations

from fastrl.legacy.binding import LegacyInit
from fastrl.legacy.changes import Refused, Renamed, Table
from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS, defaults_of

PPO_TRAIN = LegacyInit(
    order=(
        "config",
        "tokenizer",
        "policy",
        "ref_policy",
        "reward_model",
        "train_dataset",
        "value_model",
        "data_collator",
        "eval_dataset",
        "optimizers",
        "callbacks",
    ),
    changes={
        "config": Renamed("args"),
        "policy": Renamed("model"),
        "ref_policy": Renamed("ref_model"),
        "tokenizer": Renamed("processing_class"),
    },
    first="0.11",
)

# Every batch was logged, whatever `logging_steps` was.
PPO_TRAIN_DEFAULTS = defaults_of(logging_steps=1)

PPO_TRAIN_FIELDS: Table = {
    **TRAINING_ARGUMENTS,
    "base_model": Renamed("sft_model_path"),
    "non_eos_penalty": Refused("write missing_eos_penalty=, which is taken off the score"),
    "penalty_reward_value": Refused("write missing_eos_penalty=, which is off the score", (-1,)),
    "sanity_check": Refused("give the rows to train on: dataset.select(range(1000))"),
}
