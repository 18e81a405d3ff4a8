"""What dpo_online.py, nash_md.py and xpo.py share: of two answers to a problem one is better."""

from __future__ import annotations

from functools import partial
from typing import Any

import grpo
from command_line import Script

from fastrl.cli.rewarded import RewardedArguments, judged_arguments
from fastrl.cli.training import load_quantised

OFFLINE = {
    "max_steps": 50,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 32,
    "max_new_tokens": 128,
    "temperature": 0.7,  # as the samples are drawn; a model this small rambles at 1
    "learning_rate": 3e-4,
}


def made(kind: type, args: Any, quantization_config: Any = None, **given: Any) -> Any:
    """The trainer, whose config says how a model is loaded."""
    load_quantised(args, quantization_config)
    return kind(args=args, **given)


def script(trainer: type, config: type, title: str, about: str, output_dir: str) -> Script:
    """A script of such a trainer; offline its rewards are those of grpo.py."""
    return Script(
        trainer,
        config,
        partial(grpo.learn, partial(made, trainer), title, entropy="objective/entropy"),
        about,
        {**OFFLINE, "output_dir": output_dir},
        options=RewardedArguments,
        keywords=judged_arguments,
        smoke={"max_new_tokens": 8},
    )
