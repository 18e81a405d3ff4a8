"""Arguments of PPO in the form that is driven by `train()`: those of TRL 0.12 to 1.10."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastrl.legacy import InvalidChoice
from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.ppo import PPO_TRAIN_DEFAULTS, PPO_TRAIN_FIELDS
from fastrl.train.config import BaseConfig, require_choice

KL_ESTIMATORS = ("k1", "k3")

_Range = tuple[str, Callable[[float], bool]]
_FROM_0: _Range = ("finite and at least 0", lambda x: 0 <= x < math.inf)
_ABOVE_0: _Range = ("finite and above 0", lambda x: 0 < x < math.inf)
_SHARE: _Range = ("in [0, 1]", lambda x: 0 <= x <= 1)

# Field -> the numbers it takes.
_NUMBERS: dict[str, _Range] = {
    "kl_coef": _FROM_0,
    "cliprange": _FROM_0,
    "cliprange_value": _FROM_0,
    "vf_coef": _FROM_0,
    "gamma": _SHARE,
    "lam": _SHARE,
    "temperature": _ABOVE_0,
    "missing_eos_penalty": _ABOVE_0,
    "max_grad_norm": _FROM_0,
}
# Field -> the least whole number it takes.
_COUNTS = {
    "num_mini_batches": 1,
    "total_episodes": 1,
    "local_rollout_forward_batch_size": 1,
    "num_sample_generations": 0,
    "response_length": 1,
    "stop_token_id": 0,
    "num_ppo_epochs": 1,
}
_NO_PREDICTIONS = "evaluate answers prompts and scores the answers; it predicts nothing"


@accepts_legacy_fields(PPO_TRAIN_FIELDS, PPO_TRAIN_DEFAULTS)
@dataclass
class PPOTrainConfig(BaseConfig):
    """Settings of `PPOTrainer` with a reward model and a value model; `PPOConfig` makes them too.

    Names and defaults are those of TRL's `PPOConfig` from 0.12 to 1.10, learning rate as in the
    last of these, with three differences. `logging_steps` is 1, as TRL logged every batch whatever
    it was. `max_grad_norm` is 0, no clipping, as TRL's loop never clipped; a number clips.
    `num_mini_batches` multiplies the batch, as in TRL up to 0.15 (later ones split the batch, and
    then averaged steps that were never taken into what they logged):

    - `local_batch_size`: prompts of a process that are answered at once,
      per_device_train_batch_size · gradient_accumulation_steps · num_mini_batches;
      `batch_size`: those of all processes. One batch is one step of the run.
    - `local_mini_batch_size`, `mini_batch_size`: what one optimizer step sees of them,
      num_ppo_epochs · num_mini_batches times for each batch.
    - `micro_batch_size`: rows of all processes in one backward pass.

    These, and `num_total_batches`, are filled in and cannot be given. `max_steps` counts batches
    and may be given in place of `total_episodes`. `sft_model_path` and `reward_model_path` are for
    scripts; the trainer is given models.

    Raises:
        ValueError: at construction, for a value outside its range or list, or settings that
            exclude each other.
        TypeError: an unknown field, or one that can no longer be honoured.
    """

    _NO_PART: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {
        **BaseConfig._NO_PART,
        "auto_find_batch_size": ((False,), "lower per_device_train_batch_size instead"),
        "batch_eval_metrics": ((False,), _NO_PREDICTIONS),
        "bf16_full_eval": ((False,), _NO_PREDICTIONS),
        "eval_accumulation_steps": ((None,), _NO_PREDICTIONS),
        "eval_do_concat_batches": ((True,), _NO_PREDICTIONS),
        "fp16_full_eval": ((False,), _NO_PREDICTIONS),
        "include_for_metrics": (([],), _NO_PREDICTIONS),
        "label_smoothing_factor": ((0.0,), "PPO has no labels to smooth"),
        "neftune_noise_alpha": ((None,), "the policy would not be the one that sampled"),
        "prediction_loss_only": ((False,), _NO_PREDICTIONS),
        "train_sampling_strategy": (("random",), "prompts are drawn at random"),
        "use_liger_kernel": ((False,), "log-probabilities are computed without it"),
    }
    _NO_EFFECT: ClassVar[dict[str, str]] = {
        "ds3_gather_for_generation": "under ZeRO-3 weights are gathered layer by layer"
    }

    logging_steps: float = field(
        default=1, metadata={"help": "Log every so many batches; below 1, a share of all."}
    )
    learning_rate: float = field(default=3e-6, metadata={"help": "Peak learning rate of AdamW."})
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Clip the gradient norm of both models to this; 0: no."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Keep only the prompts' token ids for data_collator."}
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Processes that tokenize the prompts, if they are text."}
    )
    num_mini_batches: int = field(
        default=1, metadata={"help": "Optimizer steps that one pass over a batch is cut into."}
    )
    total_episodes: int | None = field(
        default=None,
        metadata={"help": "Responses to learn from; unset: num_train_epochs passes."},
    )
    local_rollout_forward_batch_size: int = field(
        default=64, metadata={"help": "Responses of a process that are decoded together."}
    )
    num_sample_generations: int = field(
        default=10,
        metadata={"help": "How often in a run answers to eval_dataset are shown; 0: never."},
    )
    response_length: int = field(default=53, metadata={"help": "Most tokens of a response."})
    stop_token: str | None = field(
        default=None,
        metadata={"help": "'eos': a response ends there; unset: by stop_token_id, or never."},
    )
    stop_token_id: int | None = field(
        default=None, metadata={"help": "The token that ends a response, by its id."}
    )
    temperature: float = field(
        default=0.7, metadata={"help": "What logits are divided by, sampling and scoring."}
    )
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Taken off the score of a response without EOS."}
    )
    sft_model_path: str = field(
        default="EleutherAI/pythia-160m", metadata={"help": "For scripts: where the policy starts."}
    )
    reward_model_path: str = field(
        default="EleutherAI/pythia-160m", metadata={"help": "For scripts: the reward model."}
    )
    exp_name: str | None = field(
        default=None,
        metadata={"help": "Makes run_name, where that is unset, with the seed and the time."},
    )
    model_adapter_name: str | None = field(
        default=None, metadata={"help": "The adapter that is trained, where there are several."}
    )
    ref_adapter_name: str | None = field(
        default=None,
        metadata={"help": "The adapter that is the reference; unset: the model without any."},
    )
    num_ppo_epochs: int = field(
        default=4, metadata={"help": "Passes over each batch of responses."}
    )
    whiten_rewards: bool = field(
        default=False, metadata={"help": "Bring a batch's token rewards to deviation 1."}
    )
    kl_coef: float = field(default=0.05, metadata={"help": "Weight of the KL in the rewards."})
    kl_estimator: str = field(
        default="k1",
        metadata={"help": "k1: log-ratio; k3: exp(r) - 1 - r, of less variance, never negative."},
    )
    cliprange: float = field(
        default=0.2, metadata={"help": "How far from 1 the probability ratio may move."}
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float = field(
        default=0.2, metadata={"help": "How far a value may move from what it was."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount factor."})
    lam: float = field(default=0.95, metadata={"help": "GAE's λ."})
    ds3_gather_for_generation: bool = field(
        default=True,
        metadata={"help": "ZeRO-3: weights are gathered layer by layer whatever this says."},
    )

    num_total_batches: int | None = field(default=None, init=False)
    micro_batch_size: int | None = field(default=None, init=False)
    local_batch_size: int | None = field(default=None, init=False)
    batch_size: int | None = field(default=None, init=False)
    local_mini_batch_size: int | None = field(default=None, init=False)
    mini_batch_size: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers()
        self._check_choices()
        rows, world = self.per_device_train_batch_size, self.world_size
        self.micro_batch_size = rows * world
        self.local_mini_batch_size = rows * self.gradient_accumulation_steps
        self.mini_batch_size = self.local_mini_batch_size * world
        self.local_batch_size = self.local_mini_batch_size * self.num_mini_batches
        self.batch_size = self.local_batch_size * world
        if self.whiten_rewards and self.local_mini_batch_size < 8:
            raise InvalidChoice(
                "whiten_rewards needs 8 rows or more in a mini-batch of a process, but "
                "per_device_train_batch_size * gradient_accumulation_steps = "
                f"{self.local_mini_batch_size}"
            )

    def _check_numbers(self) -> None:
        for name, (words, fits) in _NUMBERS.items():
            given = getattr(self, name)
            if given is None and name == "missing_eos_penalty":
                continue
            if not isinstance(given, int | float) or isinstance(given, bool) or not fits(given):
                raise ValueError(f"{name}={given!r}: it must be {words}")
        for name, least in _COUNTS.items():
            given = getattr(self, name)
            if given is None and name in ("total_episodes", "stop_token_id"):
                continue
            if not isinstance(given, int) or isinstance(given, bool) or given < least:
                raise ValueError(f"{name}={given!r}: a whole number from {least} on is needed")

    def _check_choices(self) -> None:
        require_choice("kl_estimator", self.kl_estimator, KL_ESTIMATORS)
        if self.stop_token not in (None, "eos"):
            raise ValueError(
                f"stop_token={self.stop_token!r}: give 'eos' or None; another token is named by "
                "stop_token_id"
            )
        if self.stop_token is not None and self.stop_token_id is not None:
            raise ValueError(
                f"stop_token='eos' and stop_token_id={self.stop_token_id} both say where a "
                "response ends; give one"
            )
        if self.total_episodes is not None and self.max_steps > 0:
            raise ValueError(
                f"total_episodes={self.total_episodes} and max_steps={self.max_steps} both say how "
                "long to train; give one"
            )


PPOv2Config = PPOTrainConfig  # its name in TRL 0.11
