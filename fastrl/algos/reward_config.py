"""Arguments of reward modelling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.reward import REWARD_DEFAULTS, REWARD_FIELDS
from fastrl.train.config import OfflineConfig


@accepts_legacy_fields(REWARD_FIELDS, REWARD_DEFAULTS)
@dataclass
class RewardConfig(OfflineConfig):
    """Arguments of `RewardTrainer`; field names and defaults are those of TRL 1.16."""

    _NO_PART: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {
        **OfflineConfig._NO_PART,
        "label_smoothing_factor": ((0.0,), "a pair has no labels to smooth"),
    }

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW."})
    chat_template_path: str | None = field(
        default=None,
        metadata={"help": "A .jinja file, or the model whose tokenizer's chat template to take."},
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Train without dropout."})
    eos_token: str | None = field(
        default=None, metadata={"help": "Token that ends a sequence; unset: the tokenizer's."}
    )
    center_rewards_coefficient: float | None = field(
        default=None, metadata={"help": "Weight of a term that keeps rewards around 0, e.g. 0.01."}
    )
