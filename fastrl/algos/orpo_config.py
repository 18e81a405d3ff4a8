"""Arguments of odds ratio preference optimization."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.reference_free import REFERENCE_FREE_DEFAULTS, REFERENCE_FREE_FIELDS
from fastrl.train.reference_free_config import ReferenceFreeConfig


@accepts_legacy_fields(REFERENCE_FREE_FIELDS, REFERENCE_FREE_DEFAULTS)
@dataclass
class ORPOConfig(ReferenceFreeConfig):
    """Arguments of `ORPOTrainer`; field names and defaults are those of TRL 1.16.

    Raises:
        ValueError: at construction, for a value out of range, or what has no part in training.
    """

    beta: float = field(
        default=0.1, metadata={"help": "Weight of the odds ratio beside the NLL (the paper's λ)."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 0:
            raise ValueError(f"beta must be 0 or more, got {self.beta}")
