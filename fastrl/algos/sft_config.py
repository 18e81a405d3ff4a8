"""Arguments of supervised fine-tuning."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.sft import SFT_DEFAULTS, SFT_FIELDS
from fastrl.train.config import OfflineConfig, require_choice

LOSSES = ("nll", "dft")
PACKINGS = ("bfd", "bfd_split", "wrapped")


@accepts_legacy_fields(SFT_FIELDS, SFT_DEFAULTS)
@dataclass
class SFTConfig(OfflineConfig):
    """Arguments of `SFTTrainer`; field names and defaults are those of TRL 1.16.

    Raises:
        ValueError: at construction, for a value outside its list or settings that exclude each
            other.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*OfflineConfig._VALID_DICT_FIELDS, "dataset_kwargs"]

    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate of AdamW."})
    router_aux_loss_coef: float | None = field(
        default=None,
        metadata={"help": "Weight of a mixture of experts' balancing loss; unset: the model's."},
    )
    chat_template_path: str | None = field(
        default=None,
        metadata={"help": "A .jinja file, or the model whose tokenizer's chat template to take."},
    )
    dataset_text_field: str = field(default="text", metadata={"help": "Column that holds text."})
    dataset_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": '{"skip_prepare_dataset": true}: rows are as the collator takes them.'},
    )
    eos_token: str | None = field(
        default=None, metadata={"help": "Token that ends a sequence; unset: the tokenizer's."}
    )
    truncation_mode: str = field(
        default="keep_start",
        metadata={"help": "What is kept of rows longer than max_length: keep_start or keep_end."},
    )
    shuffle_dataset: bool = field(
        default=False, metadata={"help": "Shuffle the rows once, before the sampler does."}
    )
    packing: bool = field(
        default=False, metadata={"help": "Fill rows of max_length with several sequences."}
    )
    packing_strategy: str = field(
        default="bfd",
        metadata={"help": "bfd: best fit, too long is cut; bfd_split: too long is split; wrapped."},
    )
    padding_free: bool = field(
        default=False,
        metadata={"help": "Batches are one row without padding. (Padding is never computed.)"},
    )
    eval_packing: bool | None = field(
        default=None, metadata={"help": "The same for evaluation; unset: as packing."}
    )
    completion_only_loss: bool | None = field(
        default=None,
        metadata={"help": "Learn completions only; unset: where the rows have prompts."},
    )
    assistant_only_loss: bool = field(
        default=False, metadata={"help": "Learn the assistant's turns of conversations only."}
    )
    loss_type: str = field(default="nll", metadata={"help": "nll, or dft (arXiv 2508.05629)."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, old, new in (
            ("loss_type", "chunked_nll", "nll"),
            ("packing_strategy", "bfd-requeue", "bfd_split"),
        ):
            if getattr(self, name) == old:
                warnings.warn(f"{name}={old!r} is called {new!r} now", FutureWarning, stacklevel=3)
                setattr(self, name, new)
        require_choice("loss_type", self.loss_type, LOSSES)
        require_choice("packing_strategy", self.packing_strategy, PACKINGS)
        require_choice("truncation_mode", self.truncation_mode, ("keep_start", "keep_end"))
        if self.packing and self.max_length is None:
            raise ValueError("packing=True fills rows of max_length tokens: set max_length")
        if self.label_smoothing_factor > 0 and self.loss_type == "dft":
            raise ValueError("label_smoothing_factor has no meaning for loss_type='dft'; leave one")
        known = ("skip_prepare_dataset", "add_special_tokens", "append_concat_token")
        for name in self.dataset_kwargs or {}:
            require_choice("dataset_kwargs key", name, known)
