"""The fields that the configs of DDPO and AlignProp share."""

from __future__ import annotations

import importlib.util
import json
import math
import numbers
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NoReturn

from fastrl.train.statistics import flatten_dict

_Range = tuple[str, Callable[[float], bool]]
FROM_0: _Range = ("finite and at least 0", lambda x: 0 <= x < math.inf)
ABOVE_0: _Range = ("finite and above 0", lambda x: 0 < x < math.inf)
_DECAY: _Range = ("in [0, 1)", lambda x: 0 <= x < 1)
_KEYWORDS = ("tracker_kwargs", "accelerator_kwargs", "project_kwargs")
PRECISIONS = ("no", "fp16", "bf16", "fp8")


def _script_name() -> str:
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return name[: -len(".py")]


@dataclass
class DiffusionConfig:
    """Settings of a trainer of a Stable Diffusion pipeline.

    Args:
        exp_name: a name that trackers get with the settings.
        run_name: the run's name in wandb, and of its folder below `logdir`.
        seed: of every generator; rank r adds r.
        log_with: "wandb", "tensorboard" or what else accelerate tracks with, or a list of them.
        tracker_kwargs: tracker -> keywords of its start.
        accelerator_kwargs: keywords of the `Accelerator`.
        project_kwargs: keywords of its `ProjectConfiguration`, before what `logdir`, `run_name`
            and `num_checkpoint_limit` say.
        tracker_project_name: the project in the tracker.
        logdir: checkpoints go to `logdir/run_name/checkpoints/checkpoint_N`.
        num_epochs: how often there is sampling and training.
        save_freq: epochs between checkpoints; there is none of epoch 0.
        num_checkpoint_limit: older checkpoints are removed.
        mixed_precision: "no", "fp16", "bf16" or "fp8"; on a CPU "fp16" is "no", with a warning.
        allow_tf32: whether matrix products on a GPU may round their inputs to TF32.
        resume_from: a checkpoint, or a folder of which the last one counts.
        sample_num_steps: denoising steps of an image.
        sample_eta: noise of the steps; 1 has that of DDPM.
        sample_guidance_scale: of classifier-free guidance; none up to 1.
        train_batch_size: samples per process and pass.
        train_use_8bit_adam: AdamW of bitsandbytes with 8-bit states.
        train_learning_rate, train_adam_beta1, train_adam_beta2, train_adam_weight_decay,
        train_adam_epsilon: of AdamW.
        train_gradient_accumulation_steps: passes over samples to an optimizer step.
        train_max_grad_norm: gradients are scaled down to this norm.
        negative_prompts: one prompt that guidance leads away from.
        push_to_hub: push the pipeline to the repository `run_name` when `train()` is through.

    Raises:
        ValueError: a value of the wrong kind or out of its range.
        ImportError: `train_use_8bit_adam` without bitsandbytes, `log_with="wandb"` without wandb.
    """

    exp_name: str = field(default_factory=_script_name)
    run_name: str | None = ""
    seed: int = 0
    log_with: Literal["wandb", "tensorboard"] | None = None
    tracker_kwargs: dict[str, Any] | str | None = field(default_factory=dict)
    accelerator_kwargs: dict[str, Any] | str | None = field(default_factory=dict)
    project_kwargs: dict[str, Any] | str | None = field(default_factory=dict)
    tracker_project_name: str = "trl"
    logdir: str = "logs"
    num_epochs: int = 100
    save_freq: int = 1
    num_checkpoint_limit: int = 5
    mixed_precision: str = "fp16"
    allow_tf32: bool = True
    resume_from: str | None = ""
    sample_num_steps: int = 50
    sample_eta: float = 1.0
    sample_guidance_scale: float = 5.0
    train_batch_size: int = 1
    train_use_8bit_adam: bool = False
    train_learning_rate: float = 3e-4
    train_adam_beta1: float = 0.9
    train_adam_beta2: float = 0.999
    train_adam_weight_decay: float = 1e-4
    train_adam_epsilon: float = 1e-8
    train_gradient_accumulation_steps: int = 1
    train_max_grad_norm: float = 1.0
    negative_prompts: str | None = ""
    push_to_hub: bool = False

    # Field -> the numbers it takes; a subclass adds its own.
    _ranges: ClassVar[dict[str, _Range]] = {
        "sample_eta": FROM_0,
        "sample_guidance_scale": FROM_0,
        "train_learning_rate": FROM_0,
        "train_adam_beta1": _DECAY,
        "train_adam_beta2": _DECAY,
        "train_adam_weight_decay": FROM_0,
        "train_adam_epsilon": ABOVE_0,
        "train_max_grad_norm": ABOVE_0,
    }
    _from_0: ClassVar[tuple[str, ...]] = ("seed",)  # the other whole numbers are at least 1

    def __post_init__(self) -> None:
        for name in _KEYWORDS:
            self._read_keywords(name)
        self._check_kinds()
        if self.mixed_precision not in PRECISIONS:
            self.refuse("mixed_precision", f"choose one of {', '.join(PRECISIONS)}")
        if not isinstance(self.negative_prompts, str | None):
            self.refuse("negative_prompts", "one prompt is needed, a string")
        if self.push_to_hub and not self.run_name:
            self.refuse("push_to_hub", "it is pushed to run_name, so name it")
        if self.log_with == "wandb" and importlib.util.find_spec("wandb") is None:
            raise ImportError("log_with='wandb' needs the package wandb: pip install wandb")
        if self.train_use_8bit_adam and importlib.util.find_spec("bitsandbytes") is None:
            raise ImportError(
                "train_use_8bit_adam=True needs the package bitsandbytes: pip install bitsandbytes"
            )

    def _check_kinds(self) -> None:
        for stated in fields(self):
            value, name = getattr(self, stated.name), stated.name
            if name in self._ranges:
                words, fits = self._ranges[name]
                number = isinstance(value, numbers.Real) and not isinstance(value, bool)
                if not (number and fits(float(value))):
                    self.refuse(name, f"give a number that is {words}")
            elif isinstance(stated.default, bool):
                if not isinstance(value, bool):
                    self.refuse(name, "give True or False")
            elif isinstance(stated.default, int):
                least = 0 if name in self._from_0 else 1
                whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
                if not (whole and int(value) >= least):
                    self.refuse(name, f"a whole number of at least {least} is needed")

    def _read_keywords(self, name: str) -> None:
        """A dict, whether it was given as one, as JSON on a command line or as None."""
        value = getattr(self, name)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                self.refuse(name, f"no JSON object: {error}")
        if value is not None and not isinstance(value, Mapping):
            self.refuse(name, "give a dict of keyword arguments")
        setattr(self, name, dict(value or {}))

    def refuse(self, name: str, why: str) -> NoReturn:
        """Raise a ValueError for a field, saying why."""
        raise ValueError(f"{name}={getattr(self, name)!r}: {why}")

    def to_dict(self) -> dict[str, Any]:
        """All fields as one flat dict; nested dicts become `outer/inner`, empty ones vanish."""
        return flatten_dict(self.__dict__)
