"""Arguments of direct preference optimization."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from fastrl.algos.dpo_losses import DIVERGENCES, LOSSES, OF_MARGIN, SMOOTHED
from fastrl.legacy.dpo import DPO_DEFAULTS, DPO_FIELDS
from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.train.config import require_choice
from fastrl.train.preference_config import PreferenceConfig


class FDivergenceType(StrEnum):
    """The divergences that TRL up to 0.28 names so; each is the string that `DPOConfig` takes."""

    REVERSE_KL = "reverse_kl"
    JS_DIVERGENCE = "js_divergence"
    ALPHA_DIVERGENCE = "alpha_divergence"


class FDivergenceConstants:
    """TRL 0.11's name for the coefficient of the alpha-divergence, and its default then."""

    ALPHA_DIVERGENCE_COEF_KEY = "alpha_divergence_coef"
    ALPHA_DIVERGENCE_COEF_DEFAULT = 1.0


@accepts_legacy_fields(DPO_FIELDS, DPO_DEFAULTS)
@dataclass
class DPOConfig(PreferenceConfig):
    """Arguments of `DPOTrainer`; field names and defaults are those of TRL 1.16.

    Raises:
        ValueError: at construction, for a value outside its list or range, or settings that exclude
            each other.
    """

    _NO_EFFECT: ClassVar[dict[str, str]] = {"padding_free": "padding is never computed"}

    truncation_mode: str = field(
        default="keep_start",
        metadata={"help": "What is kept of pairs longer than max_length: keep_start or keep_end."},
    )
    padding_free: bool = field(
        default=False, metadata={"help": "Accepted either way: padding is never computed."}
    )
    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"],
        metadata={"help": f"One or several of: {', '.join(LOSSES)}."},
    )
    loss_weights: list[float] | None = field(
        default=None, metadata={"help": "A weight for each loss; unset: 1 each."}
    )
    ld_alpha: float | None = field(
        default=None,
        metadata={"help": "Weight of the tokens beyond the shorter answer's length (LD-DPO)."},
    )
    f_divergence_type: str = field(
        default="reverse_kl", metadata={"help": f"One of: {', '.join(DIVERGENCES)}."}
    )
    f_alpha_divergence_coef: float = field(
        default=0.5, metadata={"help": "alpha of the alpha-divergence."}
    )
    label_smoothing: float = field(
        default=0.0,
        metadata={
            "help": "Probability that a preference is the wrong way round, for the losses "
            f"{', '.join(sorted(SMOOTHED))}."
        },
    )
    use_weighting: bool = field(
        default=False, metadata={"help": "Weigh pairs by how likely the policy is to write them."}
    )
    discopop_tau: float = field(default=0.05, metadata={"help": "Temperature of discopop."})

    def __post_init__(self) -> None:
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]
        if isinstance(self.f_divergence_type, FDivergenceType):
            self.f_divergence_type = self.f_divergence_type.value
        super().__post_init__()
        for name in self.loss_type:
            require_choice("loss_type", name, tuple(LOSSES))
        require_choice("f_divergence_type", self.f_divergence_type, tuple(DIVERGENCES))
        require_choice("truncation_mode", self.truncation_mode, ("keep_start", "keep_end"))
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} entries for the "
                f"{len(self.loss_type)} losses of loss_type"
            )
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        beyond = sorted(set(self.loss_type) - OF_MARGIN)
        if self.f_divergence_type != "reverse_kl" and beyond:
            raise ValueError(
                f"f_divergence_type={self.f_divergence_type!r} has no meaning for loss_type "
                f"{beyond[0]!r}; it works with {', '.join(sorted(OF_MARGIN))}"
            )
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be in [0, 1], got {self.label_smoothing}")
        rest = sorted(set(self.loss_type) - SMOOTHED)
        if self.label_smoothing and rest:
            warnings.warn(
                f"label_smoothing={self.label_smoothing} does nothing for loss_type "
                f"{', '.join(rest)}",
                stacklevel=4,
            )
        sorts = sorted({"aot", "aot_unpaired"} & set(self.loss_type))
        if self.use_weighting and sorts:
            raise ValueError(
                f"use_weighting has a weight for each pair, but loss_type {sorts[0]!r} sorts them "
                "apart; leave one out"
            )
        if "exo_pair" in self.loss_type and not 0 < self.label_smoothing < 1:
            raise ValueError("loss_type 'exo_pair' needs 0 < label_smoothing < 1, e.g. 1e-3")
        if "robust" in self.loss_type and not 0 <= self.label_smoothing < 0.5:
            raise ValueError("loss_type 'robust' needs 0 <= label_smoothing < 0.5")
