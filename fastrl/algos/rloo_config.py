"""Arguments of REINFORCE leave-one-out."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.online import RLOO_DEFAULTS, RLOO_FIELDS
from fastrl.train.online_config import OnlineConfig


@accepts_legacy_fields(RLOO_FIELDS, RLOO_DEFAULTS)
@dataclass
class RLOOConfig(OnlineConfig):
    """Arguments of `RLOOTrainer`; field names and defaults are those of TRL 1.16.

    Raises:
        ValueError: at construction, for a value outside its list or range, batches that would cut
            a prompt's group apart, or settings that exclude each other.
    """

    num_generations: int | None = field(
        default=2, metadata={"help": "Completions of each prompt, at least 2."}
    )
    beta: float = field(
        default=0.05,
        metadata={"help": "Weight of the KL to the reference, taken off the reward; 0: none."},
    )
    normalize_advantages: bool = field(
        default=False,
        metadata={"help": "Bring the generation batch's advantages to mean 0 and deviation 1."},
    )
    reward_clip_range: list[float] | None = field(
        default=None, metadata={"help": "Lowest and highest reward; unset: as they are."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.reward_clip_range
        if given is None:
            return
        if not isinstance(given, (list, tuple)) or len(given) != 2 or not given[0] < given[1]:
            raise ValueError(
                f"reward_clip_range must be (lowest, highest), got {given!r}; for 10 either way "
                "write (-10.0, 10.0)"
            )
