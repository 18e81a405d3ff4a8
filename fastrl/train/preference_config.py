"""Arguments of the trainers that compare with a frozen policy: DPO and KTO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastrl.train.config import OfflineConfig


@dataclass
class PreferenceConfig(OfflineConfig):
    """What DPO and KTO share: the strength of the reference, and where it comes from.

    Raises:
        ValueError: at construction, for a value out of range or settings that exclude each other.
    """

    _NO_PART: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {
        **OfflineConfig._NO_PART,
        "label_smoothing_factor": ((0.0,), "answers are compared whole; DPO has label_smoothing"),
    }

    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate of AdamW."})
    router_aux_loss_coef: float | None = field(
        default=None,
        metadata={"help": "Weight of a mixture of experts' balancing loss; unset: the model's."},
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Train without dropout, so that both policies compare."}
    )
    precompute_ref_log_probs: bool = field(
        default=False,
        metadata={"help": "Run the reference once over the dataset, before training."},
    )
    precompute_ref_batch_size: int | None = field(
        default=None, metadata={"help": "Rows a batch then; unset: the training batch."}
    )
    beta: float = field(
        default=0.1, metadata={"help": "How strongly the policy is held to the reference."}
    )
    sync_ref_model: bool = field(
        default=False, metadata={"help": "Let the reference follow the policy (TR-DPO)."}
    )
    ref_model_mixup_alpha: float = field(
        default=0.6, metadata={"help": "Share of the policy it then takes over."}
    )
    ref_model_sync_steps: int = field(
        default=512, metadata={"help": "Optimizer steps between two such moves."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0:
            raise ValueError(f"beta must be positive, got {self.beta}")
        if self.sync_ref_model and self.precompute_ref_log_probs:
            raise ValueError(
                "sync_ref_model changes the reference while precompute_ref_log_probs keeps what it "
                "said before training; leave one out"
            )
