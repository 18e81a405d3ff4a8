"""Arguments of Nash mirror descent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastrl.algos.online_dpo_config import NO_PART_OF_TWO, OnlineDPOConfig, by_epoch
from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.online_dpo import ONLINE_DPO_DEFAULTS, ONLINE_DPO_FIELDS


@accepts_legacy_fields(ONLINE_DPO_FIELDS, ONLINE_DPO_DEFAULTS)
@dataclass
class NashMDConfig(OnlineDPOConfig):
    """Arguments of `NashMDTrainer`; field names and defaults are those of TRL 0.28.

    `loss_type` is a field as it is there, but there is one loss.

    Raises:
        ValueError: at construction, for a value outside its list or range, or settings that
            exclude each other.
    """

    _NO_PART: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {
        **NO_PART_OF_TWO,
        "loss_type": (("sigmoid",), "Nash-MD has one loss"),
    }

    mixture_coef: list[float] = field(
        default_factory=lambda: [0.5],
        metadata={
            "help": "Share of the reference in the mixture that answers are compared with, from 0 "
            "(the policy) to 1; several: one for each epoch."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = by_epoch("mixture_coef", self.mixture_coef, lambda c: 0 <= c <= 1, "from 0 to 1")
        self.mixture_coef = shares if len(shares) > 1 else shares[0]  # type: ignore[assignment]
