"""Arguments of exploratory preference optimization."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastrl.algos.online_dpo_config import NO_PART_OF_TWO, OnlineDPOConfig, by_epoch
from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.online_dpo import ONLINE_DPO_DEFAULTS, ONLINE_DPO_FIELDS


@accepts_legacy_fields(ONLINE_DPO_FIELDS, ONLINE_DPO_DEFAULTS)
@dataclass
class XPOConfig(OnlineDPOConfig):
    """Arguments of `XPOTrainer`; field names and defaults are those of TRL 0.28.

    Raises:
        ValueError: at construction, for a value outside its list or range, or settings that
            exclude each other.
    """

    _NO_PART = NO_PART_OF_TWO

    alpha: list[float] = field(
        default_factory=lambda: [1e-5],
        metadata={
            "help": "Weight of exploring: of the reference's answers becoming unlikely; several: "
            "one for each epoch."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        alphas = by_epoch("alpha", self.alpha, lambda alpha: alpha >= 0, "0 or more")
        self.alpha = alphas if len(alphas) > 1 else alphas[0]  # type: ignore[assignment]
