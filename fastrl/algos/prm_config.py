"""Arguments of process reward models."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.prm import PRM_FIELDS
from fastrl.train.config import OfflineConfig


@accepts_legacy_fields(PRM_FIELDS)
@dataclass
class PRMConfig(OfflineConfig):
    """Arguments of `PRMTrainer`; field names and defaults are those of TRL 0.28.

    Raises:
        ValueError, TypeError: at construction, for a value out of range or of another kind.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of AdamW."})
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Keep this many tokens of a prompt's end; unset: all."}
    )
    max_completion_length: int | None = field(
        default=None, metadata={"help": "Cut the steps together to this many tokens; unset: not."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Train without dropout."})
    step_separator: str = field(
        default="\n", metadata={"help": "Text after each step; its last token is judged."}
    )
    train_on_last_step_only: bool = field(
        default=False, metadata={"help": "Learn the label of the last step alone."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_prompt_length", "max_completion_length"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise ValueError(f"{name} must be positive, got {given}")
        if not isinstance(self.step_separator, str):
            kind = type(self.step_separator).__name__
            raise TypeError(f"step_separator must be a text, got {kind} {self.step_separator!r}")
        if not self.step_separator:
            raise ValueError("step_separator is empty; give the text that ends a step")
