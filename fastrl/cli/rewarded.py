"""What the commands that draw answers share: rewards named on the command line."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastrl.cli.training import load_quantised, trainer_arguments
from fastrl.legacy import closest
from fastrl.rewards import (
    accuracy_reward,
    get_soft_overlong_punishment,
    reasoning_accuracy_reward,
    think_format_reward,
)
from fastrl.train.model_config import ModelConfig
from fastrl.train.online_config import OnlineConfig
from fastrl.train.script_arguments import DatasetMixtureConfig, ScriptArguments

PUNISHED_FROM, PUNISHED_FULLY = 1024, 1280  # tokens, of get_soft_overlong_punishment
# What a name on the command line stands for.
NAMED: dict[str, Callable[..., Any]] = {
    "accuracy_reward": accuracy_reward,
    "reasoning_accuracy_reward": reasoning_accuracy_reward,
    "think_format_reward": think_format_reward,
    "get_soft_overlong_punishment": get_soft_overlong_punishment(
        max_completion_len=PUNISHED_FULLY, soft_punish_cache=PUNISHED_FULLY - PUNISHED_FROM
    ),
}


@dataclass
class RewardedArguments(ScriptArguments):
    """One dataset, its splits, and what the answers to its prompts are worth.

    Raises:
        ValueError: a reward function that is neither known by name nor a dotted path.
    """

    reward_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A reward model: a sequence classifier's folder, or a name on the hub."},
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Reward functions: {', '.join(NAMED)} (none up to {PUNISHED_FROM} tokens, "
            f"full from {PUNISHED_FULLY}), or package.module.function."
        },
    )

    def __post_init__(self) -> None:
        for name in self.reward_funcs or ():
            if name not in NAMED and "." not in name:
                raise ValueError(
                    f"reward_funcs: {name!r} is none of {', '.join(NAMED)}, and no path like "
                    f"package.module.function{closest(name, NAMED)}"
                )


def imported(path: str, argument: str = "reward_funcs") -> Callable[..., Any]:
    """The function at `package.module.function`; modules of the working directory count too.

    `argument` is what errors call it.

    Raises:
        ValueError: there is no such module, or nothing in it that could be called by that name.
    """
    module_name, _, name = path.rpartition(".")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # One that the module itself imports and that is missing is the module's own error.
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"{argument}: {path} cannot be imported, there is no module {error.name!r} here or "
            f"among the installed ones"
        ) from None
    found = getattr(module, name, None)
    if not callable(found):
        known = [each for each in vars(module) if callable(getattr(module, each))]
        raise ValueError(
            f"{argument}: {module_name} has no function {name!r}{closest(name, known)}"
        )
    return found


def reward_functions(script_args: RewardedArguments, training_args: OnlineConfig) -> list[Any]:
    """The reward model's name if one is given, then the functions, in their order.

    Raises:
        ValueError: none is given, or a path leads to no function.
    """
    names = script_args.reward_funcs or []
    model = script_args.reward_model_name_or_path
    if model is None and not names:
        raise ValueError(
            "give reward_funcs, reward_model_name_or_path or both: nothing is rewarded"
        )
    longest = training_args.max_completion_length
    if "get_soft_overlong_punishment" in names and longest and longest <= PUNISHED_FROM:
        warnings.warn(
            f"get_soft_overlong_punishment punishes from {PUNISHED_FROM} tokens on, so answers of "
            f"at most max_completion_length={longest} are all worth 0; raise that, or name a "
            "function of your own",
            stacklevel=2,
        )
    functions = [NAMED[name] if name in NAMED else imported(name) for name in names]
    return [*([] if model is None else [model]), *functions]


def rewarded_arguments(
    script_args: RewardedArguments,
    training_args: Any,
    model_args: ModelConfig,
    dataset_args: DatasetMixtureConfig,
) -> dict[str, Any]:
    """The keywords of GRPOTrainer and RLOOTrainer.

    Raises:
        ValueError: no model, no dataset or no reward.
    """
    rewards = reward_functions(script_args, training_args)
    given = trainer_arguments(script_args, training_args, model_args, dataset_args)
    return {**given, "reward_funcs": rewards}


def judged_arguments(
    script_args: RewardedArguments,
    training_args: Any,
    model_args: ModelConfig,
    dataset_args: DatasetMixtureConfig,
) -> dict[str, Any]:
    """The keywords of OnlineDPOTrainer, NashMDTrainer and XPOTrainer.

    Their configs say how a model is loaded, quantisation included, and may name a reward model in
    `reward_model_path`.

    Raises:
        ValueError: no model, no dataset or no reward, or two reward models.
    """
    path = training_args.reward_model_path
    if path is not None and script_args.reward_model_name_or_path is not None:
        raise ValueError("reward_model_path and reward_model_name_or_path name two; give one")
    if path is not None:
        script_args.reward_model_name_or_path = path
    given = rewarded_arguments(script_args, training_args, model_args, dataset_args)
    load_quantised(training_args, given.pop("quantization_config"))
    return given
