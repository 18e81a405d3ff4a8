"""Arguments of direct preference optimization on answers that are drawn while training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.online_dpo import ONLINE_DPO_DEFAULTS, ONLINE_DPO_FIELDS
from fastrl.train.config import require_choice
from fastrl.train.online_config import OnlineConfig, require_positive

LOSS_TYPES = ("sigmoid", "ipo")
PAIR = 2  # answers to a prompt


def by_epoch(name: str, given: Any, fits: Callable[[float], bool], words: str) -> list[float]:
    """A coefficient's values, one for each epoch; the last one holds for those after it.

    Raises:
        ValueError: for none, or one that does not fit, which `words` say in words.
    """
    several = list(given) if isinstance(given, Sequence) else [given]
    if not several or not all(isinstance(x, int | float) and fits(x) for x in several):
        raise ValueError(f"{name} must be {words}, or a list of such for epochs, got {given!r}")
    return [float(x) for x in several]


@accepts_legacy_fields(ONLINE_DPO_FIELDS, ONLINE_DPO_DEFAULTS)
@dataclass
class OnlineDPOConfig(OnlineConfig):
    """Arguments of `OnlineDPOTrainer`; field names and defaults are those of TRL 1.16.

    Batch sizes count prompts, as they do there; each has two answers. Fields that TRL does not
    have are those of the other online trainers, and mean the same.

    Raises:
        ValueError: at construction, for a value outside its list or range, or settings that
            exclude each other.
    """

    learning_rate: float = field(default=5e-7, metadata={"help": "Peak learning rate of AdamW."})
    reward_model_path: str | None = field(
        default=None,
        metadata={"help": "Reward model, where the trainer is given no reward_funcs."},
    )
    max_new_tokens: int = field(default=64, metadata={"help": "Longest completion in tokens."})
    max_length: int = field(
        default=512,
        metadata={
            "help": "Most tokens of prompt and completion that are computed: prompts lose their "
            "beginning for it, completions nothing. Completions are drawn to the whole prompt."
        },
    )
    temperature: float = field(
        default=0.9, metadata={"help": "What logits are divided by where completions are drawn."}
    )
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Taken off the reward of completions without an EOS."}
    )
    beta: list[float] = field(
        default_factory=lambda: [0.1],
        metadata={"help": "How dear it is to leave the reference; several: one for each epoch."},
    )
    loss_type: str = field(default="sigmoid", metadata={"help": "sigmoid (DPO) or ipo."})
    disable_dropout: bool = field(
        default=True, metadata={"help": "Train without dropout, so that policies compare."}
    )
    vllm_gpu_memory_utilization: float = field(
        default=0.55, metadata={"help": "Share of the GPU's memory for vLLM in this process."}
    )
    vllm_max_model_length: int | None = field(
        default=None,
        metadata={"help": "Longest prompt and completion; unset: max_length + max_new_tokens."},
    )
    router_aux_loss_coef: float | None = field(
        default=0.0,
        metadata={"help": "Weight of a mixture of experts' balancing loss; unset: the model's."},
    )
    # What the other online trainers let one choose.
    max_completion_length: int | None = field(init=False, default=64)
    num_generations: int | None = field(init=False, default=PAIR)
    num_generations_eval: int | None = field(init=False, default=None)
    generation_batch_size: int | None = field(init=False, default=None)
    num_iterations: int = field(init=False, default=1)
    epsilon: float = field(init=False, default=0.2)
    epsilon_high: float | None = field(init=False, default=None)
    mask_truncated_completions: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        betas = by_epoch("beta", self.beta, lambda beta: beta > 0, "positive")
        self.beta = betas[0]  # type: ignore[assignment]
        self.max_completion_length = self.max_new_tokens
        require_positive("max_new_tokens", self.max_new_tokens)
        super().__post_init__()
        if len(betas) > 1:
            self.beta = betas
        if self.vllm_max_model_length is None:
            self.vllm_max_model_length = self.max_length + self.max_new_tokens
        require_choice("loss_type", self.loss_type, LOSS_TYPES)
        if self.missing_eos_penalty is not None and self.missing_eos_penalty <= 0:
            raise ValueError(
                f"missing_eos_penalty is taken off the reward, so it must be positive, got "
                f"{self.missing_eos_penalty}"
            )
        if self.max_length < 2:
            raise ValueError(
                f"max_length must leave room for 2 tokens or more, got {self.max_length}"
            )
        if self.max_new_tokens >= self.max_length:
            warnings.warn(
                f"max_new_tokens={self.max_new_tokens} is no less than max_length="
                f"{self.max_length}, so long completions are learnt after the last token of their "
                "prompt alone; raise max_length",
                stacklevel=4,
            )

    @property
    def logp_temperature(self) -> float:
        """1: the policy that learns is the model itself, whatever draws its answers."""
        return 1.0

    def _settle_generation_batch(self) -> None:
        require_positive("steps_per_generation", self.steps_per_generation)
        steps = self.steps_per_generation or self.gradient_accumulation_steps
        self.steps_per_generation = steps
        self.generation_batch_size = (
            PAIR * self.per_device_train_batch_size * self.world_size * steps
        )

    def _check_groups(self) -> None:
        """A pair is one row of the dataloader until it is drawn, so no batch size cuts it."""


# `_NO_PART` of the trainers whose second answers are another model's.
NO_PART_OF_TWO = {
    **OnlineDPOConfig._NO_PART,
    "use_vllm": ((False,), "every second answer needs the reference, which vLLM does not have"),
}
