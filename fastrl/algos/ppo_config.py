"""Configuration of classic PPO: the fields and defaults of TRL 0.7.11, and three of ours."""

from __future__ import annotations

import importlib.util
import inspect
import math
import numbers
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NoReturn

from fastrl.legacy import InvalidChoice, warn_once
from fastrl.legacy.changes import Ignored, Table
from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.generation import pinned
from fastrl.train.statistics import flatten_dict

KL_PENALTIES = ("kl", "abs", "mse", "full")

_Range = tuple[str, Callable[[float], bool]]
_FROM_0: _Range = ("at least 0", lambda x: x >= 0)
_FINITE_FROM_0: _Range = ("finite and at least 0", lambda x: 0 <= x < math.inf)
_ABOVE_0: _Range = ("above 0", lambda x: x > 0)
_SHARE: _Range = ("in [0, 1]", lambda x: 0 <= x <= 1)

# Field -> the numbers it takes.
_NUMBERS: dict[str, _Range] = {
    "steps": _ABOVE_0,
    "learning_rate": _FINITE_FROM_0,
    "init_kl_coef": _FINITE_FROM_0,
    "target": _ABOVE_0,
    "horizon": _ABOVE_0,
    "gamma": _SHARE,
    "lam": _SHARE,
    "cliprange": _FROM_0,
    "cliprange_value": _FROM_0,
    "vf_coef": _FINITE_FROM_0,
    "target_kl": ("anything but NaN", lambda x: x == x),
    "ratio_threshold": _ABOVE_0,
    "max_grad_norm": _ABOVE_0,
    "score_clip": _ABOVE_0,
}
_OPTIONAL = ("max_grad_norm", "score_clip")  # None: off
_SIZES = (
    "batch_size",
    "mini_batch_size",
    "gradient_accumulation_steps",
    "ppo_epochs",
    "compare_steps",
)
_SWITCHES = (
    "remove_unused_columns",
    "adap_kl_ctrl",
    "optimize_device_cache",
    "early_stopping",
    "use_score_scaling",
    "use_score_norm",
    "whiten_rewards",
    "position_ids",
    "global_statistics",
)
_KEYWORDS = (
    "tracker_kwargs",
    "accelerator_kwargs",
    "project_kwargs",
    "push_to_hub_if_best_kwargs",
)


class _Unset(int):
    """A default that can be told from the same number written by the user."""


_MINI_BATCH_SIZE = _Unset(128)


def _is_whole(value: Any, least: int) -> bool:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and int(value) >= least


def form_of(names: Iterable[str]) -> type:
    """`PPOTrainConfig` or `PPOConfig`, whichever has the fields of these names that only one has.

    Where there is none, `set_api("1")` asks for the `train()` form; without it, it is this one.

    Raises:
        InvalidForm: names of both forms.
    """
    from fastrl.algos.ppo_train_config import PPOTrainConfig
    from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS

    classic = {f.name for f in fields(PPOConfig)}
    known = {f.name for f in fields(PPOTrainConfig) if f.init} | TRAINING_ARGUMENTS.keys()
    asked = sorted(set(names) & known - classic - _OF_0_11.keys())
    others = sorted(set(names) & classic - known)
    if asked and others:
        raise InvalidForm(
            f"PPOConfig got fields of the step() form ({', '.join(others)}) and of the train() "
            f"form ({', '.join(asked)}); give those of one"
        )
    if not asked and (others or pinned() != "1"):
        return PPOConfig
    return PPOTrainConfig


def _script_name() -> str:
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return name[: -len(".py")]


_OF_0_11: Table = {
    "dataset_num_proc": Ignored("prepare the dataset with it, before it is given to the trainer"),
    "gradient_checkpointing": Ignored(
        "every pass runs in eval mode, in which transformers keeps all activations"
    ),
}


class InvalidForm(TypeError, ValueError):
    """Fields of both forms: a TypeError of the constructor's, a ValueError of the parser's."""


@accepts_legacy_fields(_OF_0_11)
@dataclass
class PPOConfig:
    """Settings of `PPOTrainer`.

    Fields up to `whiten_rewards` are those of TRL 0.7.11, in its order and with its defaults;
    `position_ids` and `global_statistics` are ours. A batch is `batch_size` rows per process
    and `step()`; it is trained on for `ppo_epochs` epochs in minibatches of `mini_batch_size` rows,
    `gradient_accumulation_steps` of them to an optimizer step.

    `mini_batch_size` left unset is 128 where that divides the batch and otherwise
    `batch_size // gradient_accumulation_steps`, so that `PPOConfig(batch_size=1)` works as it did
    while the default was 1. `optimize_cuda_cache` and `forward_batch_size` are older spellings of
    `optimize_device_cache` and `mini_batch_size`.

    Called with fields that only the `train()` form has (`output_dir`, `num_ppo_epochs`, …) it makes
    a `PPOTrainConfig`; with none that only one form has, `set_api("1")` asks for that one too.

    Raises:
        ValueError: batch sizes that do not divide, a value of the wrong kind or out of its range
            or list, an old spelling that contradicts the new one.
        TypeError: an unknown field; the message names the closest one. Fields of both forms.
        ImportError: `log_with="wandb"` without the package wandb.
    """

    exp_name: str = field(default_factory=_script_name)
    seed: int = 0
    log_with: Any = None
    task_name: str | None = None
    model_name: str | None = "gpt2"
    query_dataset: str | None = "imdb"
    reward_model: str | None = "sentiment-analysis:lvwerra/distilbert-imdb"
    remove_unused_columns: bool = True
    tracker_kwargs: dict[str, Any] = field(default_factory=dict)
    accelerator_kwargs: dict[str, Any] = field(default_factory=dict)
    project_kwargs: dict[str, Any] = field(default_factory=dict)
    tracker_project_name: str = "trl"
    push_to_hub_if_best_kwargs: dict[str, Any] = field(default_factory=dict)

    steps: int = 20000  # sets total_ppo_epochs = ceil(steps / batch_size), for loops that read it
    learning_rate: float = 1.41e-5
    adap_kl_ctrl: bool = True
    init_kl_coef: float = 0.2
    kl_penalty: Literal["kl", "abs", "mse", "full"] = "kl"
    target: float = 6  # KL in nats per row that the adaptive controller steers to
    horizon: float = 10000  # rows over which the controller acts
    gamma: float = 1
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    batch_size: int = 128
    forward_batch_size: int | None = None
    mini_batch_size: int = _MINI_BATCH_SIZE
    gradient_accumulation_steps: int = 1
    world_size: int | None = None
    ppo_epochs: int = 4
    max_grad_norm: float | None = None
    optimize_cuda_cache: bool | None = None
    optimize_device_cache: bool = False
    early_stopping: bool = False
    target_kl: float = 1
    compare_steps: int = 1
    ratio_threshold: float = 10.0
    use_score_scaling: bool = False
    use_score_norm: bool = False
    score_clip: float | None = None
    whiten_rewards: bool = False

    # Filled while running.
    is_encoder_decoder: bool | None = None
    is_peft_model: bool | None = None
    backward_batch_size: int | None = None
    global_backward_batch_size: int | None = None
    global_batch_size: int | None = None

    # Ours.
    position_ids: bool = (
        False  # left padding: count positions from a row's first token, not its pads
    )
    global_statistics: bool = False  # whiten and average over the rows of all processes

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """This class, or the `train()` form's where its fields are given."""
        form = cls if args or cls is not PPOConfig else form_of(kwargs)
        return super().__new__(cls) if form is cls else form(**kwargs)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        """A copy, or what a pickle holds, is of this form whatever is pinned."""
        return (), {"steps": self.steps}

    form_of = staticmethod(form_of)

    def __post_init__(self) -> None:
        self._take_old_spellings()
        self._check_ranges()
        self._set_batch_sizes()
        self.total_ppo_epochs = math.ceil(self.steps / self.batch_size)
        if self.log_with == "wandb" and importlib.util.find_spec("wandb") is None:
            raise ImportError("log_with='wandb' needs the package wandb: pip install wandb")

    def _take_old_spellings(self) -> None:
        if self.forward_batch_size is not None:
            warn_once("forward_batch_size is now mini_batch_size", FutureWarning, stacklevel=5)
            given = self.mini_batch_size is not _MINI_BATCH_SIZE
            if given and self.mini_batch_size != self.forward_batch_size:
                raise ValueError(
                    f"forward_batch_size={self.forward_batch_size} contradicts mini_batch_size="
                    f"{self.mini_batch_size}: give only mini_batch_size"
                )
            self.mini_batch_size = self.forward_batch_size
        if self.optimize_cuda_cache is not None:
            warn_once("optimize_cuda_cache is now optimize_device_cache", FutureWarning, 5)
            if self.optimize_device_cache and not self.optimize_cuda_cache:
                raise ValueError("optimize_cuda_cache=False contradicts optimize_device_cache=True")
            self.optimize_device_cache = self.optimize_cuda_cache

    def _check_ranges(self) -> None:
        if self.kl_penalty not in KL_PENALTIES:
            raise InvalidChoice(f"kl_penalty={self.kl_penalty!r}: choose one of {KL_PENALTIES}")
        for name in _SIZES:
            if not _is_whole(getattr(self, name), 1):
                self._refuse(name, "a whole number of at least 1 is needed")
        if not _is_whole(self.seed, 0) or self.seed >= 2**32:
            self._refuse("seed", "a whole number in [0, 2**32) is needed")
        for name, (words, fits) in _NUMBERS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not isinstance(value, numbers.Real) or isinstance(value, bool):
                self._refuse(name, f"a number is needed, not a {type(value).__name__}")
            if not fits(float(value)):
                self._refuse(name, f"it must be {words}")
        for name in _SWITCHES:
            if getattr(self, name) not in (True, False):
                self._refuse(name, "give True or False")
        for name in _KEYWORDS:
            if not isinstance(getattr(self, name), Mapping):
                self._refuse(name, "give a dict of keyword arguments")
        if self.use_score_norm and not self.use_score_scaling:
            warn_once("use_score_norm acts only with use_score_scaling=True", stacklevel=5)

    def _refuse(self, name: str, why: str) -> NoReturn:
        raise ValueError(f"{name}={getattr(self, name)!r}: {why}")

    def _set_batch_sizes(self) -> None:
        steps = self.gradient_accumulation_steps
        if self.mini_batch_size is _MINI_BATCH_SIZE:
            fits = self.batch_size % (_MINI_BATCH_SIZE * steps) == 0
            self.mini_batch_size = 128 if fits else max(1, self.batch_size // steps)
        self.backward_batch_size = self.mini_batch_size * steps
        if self.batch_size % self.backward_batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} is no multiple of mini_batch_size * "
                f"gradient_accumulation_steps = {self.mini_batch_size} * {steps}"
            )

    def to_dict(self) -> dict[str, Any]:
        """All fields as one flat dict; nested dicts become `outer/inner`, empty ones vanish."""
        fields: Mapping[str, Any] = self.__dict__
        return flatten_dict(fields)


_, *_FIELDS = inspect.signature(PPOConfig.__init__).parameters.values()
# `__new__` takes anything.
PPOConfig.__signature__ = inspect.Signature(_FIELDS)  # type: ignore[attr-defined]
