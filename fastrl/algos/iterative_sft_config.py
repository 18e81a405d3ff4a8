"""Arguments of supervised fine-tuning by calls of `step()`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import TrainingArguments

from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.iterative_sft import ITERATIVE_SFT_FIELDS
from fastrl.train.config import BaseConfig, require_choice

_SAVES_NOTHING = "step() saves nothing; call save_model when you like"


@accepts_legacy_fields(ITERATIVE_SFT_FIELDS)
@dataclass
class IterativeSFTConfig(BaseConfig):
    """Arguments of `IterativeSFTTrainer`; field names and defaults are those of TRL 0.23.

    Raises:
        ValueError: at construction, for a truncation_mode or max_length that is none.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
    ]

    _NO_PART: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {
        **BaseConfig._NO_PART,
        "auto_find_batch_size": ((False,), "lower per_device_train_batch_size instead"),
        "dataloader_drop_last": ((False,), "step() learns every row it is given"),
        "dataloader_num_workers": ((0,), "step() is given its rows"),
        "dataloader_persistent_workers": ((False,), "step() is given its rows"),
        "eval_delay": ((0, None), "evaluate when you like, between two calls of step()"),
        "eval_on_start": ((False,), "call evaluate() before the first step()"),
        "eval_strategy": (("no", "steps"), "step() has no epochs"),
        "load_best_model_at_end": ((False,), _SAVES_NOTHING),
        "metric_for_best_model": ((None,), _SAVES_NOTHING),
        "num_train_epochs": ((3,), "call step() with the rows again"),
        "save_steps": ((500,), _SAVES_NOTHING),
        "save_strategy": (("steps", "no"), _SAVES_NOTHING),
        "save_total_limit": ((None,), _SAVES_NOTHING),
        "torch_empty_cache_steps": ((None,), "optimize_device_cache empties it"),
        "train_sampling_strategy": (("random",), "step() shuffles the rows it is given"),
        "use_liger_kernel": ((False,), "give a model that Liger's layers are in already"),
    }

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keywords of from_pretrained, where the model is given by name."},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run model code that comes with a checkpoint."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Longest row in tokens; unset: no limit."}
    )
    truncation_mode: str = field(
        default="keep_end",
        metadata={"help": "What is kept of rows longer than max_length: keep_start or keep_end."},
    )
    optimize_device_cache: bool = field(
        default=False, metadata={"help": "Empty the device's cache after each step()."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("truncation_mode", self.truncation_mode, ("keep_end", "keep_start"))
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(
                f"max_length must leave room for 2 tokens or more, got {self.max_length}"
            )
