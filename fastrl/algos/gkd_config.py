"""Arguments of generalized knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastrl.algos.sft_config import SFTConfig
from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.gkd import GKD_FIELDS

_CHATS = "rows are conversations, whose last turn is learnt"
_ONE_A_ROW = "a row is one conversation; padding is never computed"


@accepts_legacy_fields(GKD_FIELDS)
@dataclass
class GKDConfig(SFTConfig):
    """Arguments of `GKDTrainer`; field names and defaults are those of TRL 1.16.

    Raises:
        ValueError: at construction, for a value outside its range, or a setting of SFT that has no
            part here.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *SFTConfig._VALID_DICT_FIELDS,
        "teacher_model_init_kwargs",
    ]
    _NO_PART: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {
        **SFTConfig._NO_PART,
        "assistant_only_loss": ((False,), _CHATS),
        "completion_only_loss": ((None, True), _CHATS),
        "dataset_text_field": (("text",), _CHATS),
        "loss_type": (("nll",), "the loss is a divergence, chosen by beta"),
        "label_smoothing_factor": ((0, 0.0), "no label is learnt, but the teacher's distribution"),
        "packing": ((False,), _ONE_A_ROW),
        "padding_free": ((False,), _ONE_A_ROW),
        "eval_packing": ((None, False), _ONE_A_ROW),
        "packing_strategy": (("bfd",), _ONE_A_ROW),
        "router_aux_loss_coef": ((None, 0.0, 0), "the loss is the divergence alone"),
        "shuffle_dataset": ((False,), "shuffle them before"),
        "truncation_mode": (("keep_start",), "long conversations lose their beginning"),
        "dataset_num_proc": ((None,), "rows are prepared by dataloader_num_workers"),
        "dataset_kwargs": ((None, {"skip_prepare_dataset": True}), "rows are never prepared"),
        "pad_to_multiple_of": (("auto", None), _ONE_A_ROW),
    }

    temperature: float = field(
        default=0.9,
        metadata={"help": "What logits are divided by where answers are drawn; not in the loss."},
    )
    lmbda: float = field(
        default=0.5,
        metadata={"help": "Share of micro-batches whose answers the student draws itself."},
    )
    beta: float = field(
        default=0.5,
        metadata={
            "help": "The divergence: 0 KL(teacher || student), 1 KL(student || teacher), between "
            "them Jensen-Shannon's with the teacher's share beta in the mixture."
        },
    )
    max_new_tokens: int = field(
        default=128, metadata={"help": "Longest answer that is drawn, in tokens."}
    )
    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "The teacher, where the trainer is given no teacher_model."},
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keywords of from_pretrained, where the teacher is given by name."},
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Set every dropout of the student to 0."}
    )
    seq_kd: bool = field(
        default=False,
        metadata={"help": "The teacher draws the answers of the other micro-batches."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lmbda", "beta"):
            given = getattr(self, name)
            if not 0 <= given <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {given}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
