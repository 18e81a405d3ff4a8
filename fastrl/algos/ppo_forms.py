"""One name, two forms: PPO driven by `step()` (TRL to 0.11) and by `train()` (from 0.12 on)."""

from __future__ import annotations

import inspect
from typing import Any

from fastrl.algos.ppo_train import PPOv2Trainer
from fastrl.algos.ppo_train_config import PPOTrainConfig

# Arguments that only one form has; those both have say nothing.
_TRAIN = set(inspect.signature(PPOv2Trainer).parameters) | {"policy", "ref_policy"}
_STEP = {
    "dataset",
    "lr_scheduler",
    "num_shared_layers",
    "optimizer",
    "training_data_collator",
}
_BOTH = {"model", "ref_model", "data_collator"}


class TwoForms(type):
    """Metaclass of the `step()` form: a call with the `train()` form's arguments makes that one.

    `isinstance(trainer, PPOTrainer)` holds for either.

    Raises (when called):
        TypeError: arguments of both forms; or a subclass, which is of the `step()` form, called
            with those of the other.
    """

    def __init__(cls, name: str, bases: tuple[type, ...], members: dict[str, Any]) -> None:
        super().__init__(name, bases, members)
        by_step: Any = cls
        _, *rest = inspect.signature(by_step.__init__).parameters.values()
        cls.__signature__ = inspect.Signature(rest)  # of a call by `step()`, for those who ask

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        configs = [*args[:1], *(kwargs[name] for name in ("config", "args") if name in kwargs)]
        asked = sorted(kwargs.keys() & (_TRAIN - _BOTH))
        by_train = any(isinstance(config, PPOTrainConfig) for config in configs)
        if not by_train and not asked:
            return super().__call__(*args, **kwargs)
        classic = sorted(kwargs.keys() & _STEP)
        if not by_train and configs and configs[0] is not None:
            classic.append(type(configs[0]).__name__)
        if classic:
            asked = asked or ["PPOTrainConfig"]
            raise TypeError(
                f"{cls.__name__} got arguments of its step() form ({', '.join(classic)}) and of "
                f"its train() form ({', '.join(asked)}); give those of one"
            )
        if _is_subclass(cls):
            raise TypeError(
                f"{cls.__name__} subclasses the step() form of PPOTrainer; subclass PPOv2Trainer, "
                "which has the train() form"
            )
        return PPOv2Trainer(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        if super().__instancecheck__(instance):
            return True
        return isinstance(instance, PPOv2Trainer) and not _is_subclass(cls)


def _is_subclass(cls: type) -> bool:
    """Whether a class of this metaclass is under another one."""
    return any(isinstance(base, TwoForms) for base in cls.__bases__)
