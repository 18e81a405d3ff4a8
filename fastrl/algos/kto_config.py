"""Arguments of Kahneman-Tversky optimization."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.kto import KTO_DEFAULTS, KTO_FIELDS
from fastrl.train.config import require_choice
from fastrl.train.preference_config import PreferenceConfig

LOSSES = ("kto", "apo_zero_unpaired")


@accepts_legacy_fields(KTO_FIELDS, KTO_DEFAULTS)
@dataclass
class KTOConfig(PreferenceConfig):
    """Arguments of `KTOTrainer`; field names and defaults are those of TRL 1.16.

    Raises:
        ValueError: at construction, for a value outside its list or range, or settings that exclude
            each other.
    """

    train_sampling_strategy: str = field(
        default="sequential",
        metadata={
            "help": "Order of the rows; batches pair each prompt with its neighbour's answer."
        },
    )
    loss_type: str = field(default="kto", metadata={"help": f"One of: {', '.join(LOSSES)}."})
    desirable_weight: float = field(default=1.0, metadata={"help": "Weight of good answers."})
    undesirable_weight: float = field(default=1.0, metadata={"help": "Weight of bad answers."})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("loss_type", self.loss_type, LOSSES)
        if self.loss_type == "kto" and self.per_device_train_batch_size < 2:
            raise ValueError(
                "loss_type='kto' measures the KL on answers to other prompts of the batch: set "
                "per_device_train_batch_size to 2 or more"
            )
