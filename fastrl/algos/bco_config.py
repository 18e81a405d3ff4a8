"""Arguments of binary classifier optimization."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastrl.legacy.bco import BCO_DEFAULTS, BCO_FIELDS
from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.train.config import require_choice
from fastrl.train.preference_config import PreferenceConfig


@accepts_legacy_fields(BCO_FIELDS, BCO_DEFAULTS)
@dataclass
class BCOConfig(PreferenceConfig):
    """Arguments of `BCOTrainer`; field names and defaults are those of TRL 0.28.

    Raises:
        ValueError: at construction, for a value outside its list or range, or settings that exclude
            each other.
    """

    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate of AdamW."})
    train_sampling_strategy: str = field(
        default="sequential", metadata={"help": "Order of the rows."}
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Cut the prompt of a row that is too long to this first; unset: not."},
    )
    truncation_mode: str = field(
        default="keep_end", metadata={"help": "Which part of such a prompt stays, or keep_start."}
    )
    prompt_sample_size: int = field(
        default=1024,
        metadata={"help": "Prompts of either kind from which embedding_func's weights are learnt."},
    )
    min_density_ratio: float = field(
        default=0.5, metadata={"help": "Least weight of a bad answer by its prompt."}
    )
    max_density_ratio: float = field(
        default=10.0, metadata={"help": "Greatest weight of a bad answer by its prompt."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("truncation_mode", self.truncation_mode, ("keep_end", "keep_start"))
        if self.max_prompt_length is not None and self.max_prompt_length < 1:
            raise ValueError(f"max_prompt_length must be positive, got {self.max_prompt_length}")
        if self.prompt_sample_size < 1:
            raise ValueError(f"prompt_sample_size must be positive, got {self.prompt_sample_size}")
        if not 0 <= self.min_density_ratio <= self.max_density_ratio:
            raise ValueError(
                f"min_density_ratio={self.min_density_ratio} and max_density_ratio="
                f"{self.max_density_ratio} bound a weight: they must be 0 or more, and rise"
            )
