"""Arguments of the trainers on pairs of answers that compare with no reference: ORPO and CPO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastrl.train.config import OfflineConfig, require_choice


@dataclass
class ReferenceFreeConfig(OfflineConfig):
    """What ORPO and CPO share: how pairs are cut, and what a policy without reference needs.

    Raises:
        ValueError: at construction, for a value out of range or what has no part in training.
    """

    _NO_PART: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {
        **OfflineConfig._NO_PART,
        "label_smoothing_factor": ((0.0,), "answers are compared whole; CPO has label_smoothing"),
        "generate_during_eval": ((False,), "add LogCompletionsCallback to the callbacks"),
        "is_encoder_decoder": ((None, False), "only decoder-only models are trained here"),
    }

    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate of AdamW."})
    max_completion_length: int | None = field(
        default=None, metadata={"help": "Longest answer in tokens; longer ones are cut at the end."}
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={
            "help": "Where a pair exceeds max_length, its prompt is cut to so many tokens and its "
            "answers to the rest; unset: only answers are cut."
        },
    )
    truncation_mode: str = field(
        default="keep_end",
        metadata={"help": "What max_prompt_length leaves of a prompt: keep_end or keep_start."},
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Train without dropout."})
    padding_value: int | None = field(
        default=None, metadata={"help": "Id that pads batches; unset: the tokenizer's."}
    )
    generate_during_eval: bool = field(
        default=False, metadata={"help": "Refused: LogCompletionsCallback logs answers."}
    )
    is_encoder_decoder: bool | None = field(
        default=None, metadata={"help": "Refused if true: only decoder-only models are trained."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("truncation_mode", self.truncation_mode, ("keep_end", "keep_start"))
        for name in ("max_completion_length", "max_prompt_length"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise ValueError(f"{name} must be positive or None, got {given}")
        if self.max_prompt_length is None:
            return
        if self.max_length is None:
            raise ValueError(
                f"max_prompt_length={self.max_prompt_length} cuts prompts of pairs longer than "
                "max_length, which is None; set max_length, or leave max_prompt_length out"
            )
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length={self.max_prompt_length} leaves no room for an answer within "
                f"max_length={self.max_length}; set a smaller one"
            )
