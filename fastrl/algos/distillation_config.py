"""Arguments of distillation on answers that the student draws."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastrl.train.online_config import OnlineConfig, require_positive


@dataclass
class DistillationConfig(OnlineConfig):
    """Arguments of `DistillationTrainer`; field names and defaults are those of TRL 1.16.

    Every prompt has one answer. A generation batch is an optimizer step:
    `per_device_train_batch_size * gradient_accumulation_steps` answers on each process. Fields that
    TRL does not have are those of the other online trainers, and mean the same.

    Raises:
        ValueError: at construction, for a value outside its range, or settings that exclude each
            other.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *OnlineConfig._VALID_DICT_FIELDS,
        "teacher_model_init_kwargs",
    ]

    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "The teacher, where the trainer is given no teacher_model."},
    )
    teacher_model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a teacher given by name."}
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keywords of from_pretrained, where the teacher is given by name."},
    )
    temperature: float = field(
        default=1.0,
        metadata={
            "help": "What the logits of both models are divided by, where answers are drawn and in "
            "the loss."
        },
    )
    beta: float = field(
        default=1.0,
        metadata={
            "help": "Which divergence is minimised: 0 KL(teacher || student), 1 KL(student || "
            "teacher), between them Jensen-Shannon's with the teacher's share beta in the mixture."
        },
    )
    max_tool_calling_iterations: int | None = field(
        default=None,
        metadata={"help": "How often an answer may call tools; unset: until it is full."},
    )
    # What the other online trainers let one choose.
    router_aux_loss_coef: float | None = field(init=False, default=0.0)
    num_generations: int | None = field(init=False, default=1)
    num_generations_eval: int | None = field(init=False, default=1)
    generation_batch_size: int | None = field(init=False, default=None)
    steps_per_generation: int | None = field(init=False, default=None)
    num_iterations: int = field(init=False, default=1)
    epsilon: float = field(init=False, default=0.2)
    epsilon_high: float | None = field(init=False, default=None)
    reward_weights: list[float] | None = field(init=False, default=None)
    reward_timeout: float | None = field(init=False, default=None)
    mask_truncated_completions: bool = field(init=False, default=False)
    dynamic_sampling: bool = field(init=False, default=False)
    dynamic_sampling_rounds: int = field(init=False, default=4)
    sync_ref_model: bool = field(init=False, default=False)
    ref_model_mixup_alpha: float = field(init=False, default=0.6)
    ref_model_sync_steps: int = field(init=False, default=512)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("max_tool_calling_iterations", self.max_tool_calling_iterations)
        if not 0 <= self.beta <= 1:
            raise ValueError(
                f"beta must be between 0 and 1, got {self.beta}: it is the teacher's share in the "
                "mixture that both are compared with, no weight of a penalty"
            )

    @property
    def shows_columns(self) -> bool:
        """False: nothing is rewarded."""
        return False

    @property
    def needs_reference(self) -> bool:
        """True: the teacher."""
        return True

    def _check_groups(self) -> None:
        """Every prompt has one answer, so no batch size cuts a group."""
