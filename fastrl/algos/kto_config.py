"""Arguments of Kahneman-Tversky optimization."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastrl.legacy.fields import accepts_legacy_fields
from fastrl.legacy.kto import KTO_FIELDS
from fastrl.train.config import OfflineConfig, require_choice

LOSSES = ("kto", "apo_zero_unpaired")


@accepts_legacy_fields(KTO_FIELDS)
@dataclass
class KTOConfig(OfflineConfig):
    """Arguments of `KTOTrainer`; field names and defaults are those of TRL 1.16.

    Raises:
        ValueError: at construction, for a value outside its list or range, or settings that exclude
            each other.
    """

    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate of AdamW."})
    train_sampling_strategy: str = field(
        default="sequential",
        metadata={
            "help": "Order of the rows; batches pair each prompt with its neighbour's answer."
        },
    )
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
    loss_type: str = field(default="kto", metadata={"help": f"One of: {', '.join(LOSSES)}."})
    beta: float = field(
        default=0.1, metadata={"help": "How strongly the policy is held to the reference."}
    )
    desirable_weight: float = field(default=1.0, metadata={"help": "Weight of good answers."})
    undesirable_weight: float = field(default=1.0, metadata={"help": "Weight of bad answers."})
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
        require_choice("loss_type", self.loss_type, LOSSES)
        if self.beta <= 0:
            raise ValueError(f"beta must be positive, got {self.beta}")
        if self.loss_type == "kto" and self.per_device_train_batch_size < 2:
            raise ValueError(
                "loss_type='kto' measures the KL on answers to other prompts of the batch: set "
                "per_device_train_batch_size to 2 or more"
            )
        if self.sync_ref_model and self.precompute_ref_log_probs:
            raise ValueError(
                "sync_ref_model changes the reference while precompute_ref_log_probs keeps what it "
                "said before training; leave one out"
            )
