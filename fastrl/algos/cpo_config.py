"""Arguments of contrastive preference optimization, SimPO and AlphaPO."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastrl.algos.cpo_losses import LOSSES, SMOOTHED
from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.reference_free import REFERENCE_FREE_DEFAULTS, REFERENCE_FREE_FIELDS
from fastrl.train.config import require_choice
from fastrl.train.reference_free_config import ReferenceFreeConfig


@accepts_legacy_fields(REFERENCE_FREE_FIELDS, REFERENCE_FREE_DEFAULTS)
@dataclass
class CPOConfig(ReferenceFreeConfig):
    """Arguments of `CPOTrainer`; field names and defaults are those of TRL 1.16.

    `loss_type="alphapo"` becomes "simpo" with `cpo_alpha=0`; `alpha` shapes its reward.

    Raises:
        ValueError: at construction, for a value outside its list or range, or settings that exclude
            each other.
    """

    beta: float = field(default=0.1, metadata={"help": "Steepness of the preference's loss."})
    label_smoothing: float = field(
        default=0.0,
        metadata={
            "help": "Probability that a preference is the wrong way round, for the losses "
            f"{', '.join(SMOOTHED)}."
        },
    )
    loss_type: str = field(
        default="sigmoid", metadata={"help": f"One of: {', '.join(LOSSES)}, alphapo."}
    )
    cpo_alpha: float = field(
        default=1.0, metadata={"help": "Weight of the chosen answers' NLL; 0: none."}
    )
    simpo_gamma: float = field(
        default=0.5, metadata={"help": "Margin that simpo wants between the rewards."}
    )
    alpha: float = field(
        default=0.0,
        metadata={"help": "Shape of the reward, (1 - p^-alpha) / alpha (AlphaPO); 0: log p."},
    )

    def __post_init__(self) -> None:
        if self.loss_type == "alphapo":
            self._become_simpo()
        super().__post_init__()
        require_choice("loss_type", self.loss_type, tuple(LOSSES))
        if self.beta <= 0:
            raise ValueError(f"beta must be positive, got {self.beta}")
        if self.cpo_alpha < 0:
            raise ValueError(f"cpo_alpha must be 0 or more, got {self.cpo_alpha}")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be in [0, 1], got {self.label_smoothing}")
        if self.label_smoothing and self.loss_type not in SMOOTHED:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} has no meaning for loss_type "
                f"{self.loss_type!r}; it works with {' and '.join(SMOOTHED)}"
            )

    def _become_simpo(self) -> None:
        if self.cpo_alpha not in (0.0, 1.0):  # the default, which nobody may have chosen
            raise ValueError(
                f"loss_type='alphapo' has no NLL, but cpo_alpha={self.cpo_alpha} is its weight; "
                "leave it out, or write loss_type='simpo' to have it"
            )
        self.loss_type, self.cpo_alpha = "simpo", 0.0
