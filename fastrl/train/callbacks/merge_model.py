"""Checkpoints merged with another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate.utils import extract_model_from_parallel
from transformers import (
    AutoConfig,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from fastrl.train.merging import MergeConfig, merge_models, upload_model_to_hf


class MergeModelCallback(TrainerCallback):
    """Merges the trained model with another one, into `checkpoint-N/merged`.

    Args:
        merge_config: how; None: the mean of both. Without `target_model_path` the other model is
            the one that training began from.
        merge_at_every_checkpoint: at each save, and not only at the end of training.
        push_to_hub: put the merged model on the hub, as `<output folder>_checkpoint-N_merged`.

    Raises (when training begins):
        ValueError: it is not known what to merge with, or the model is trained by an adapter, whose
            checkpoints hold no whole model.
        OSError: there is no model at `target_model_path`.
    """

    def __init__(
        self,
        merge_config: MergeConfig | None = None,
        merge_at_every_checkpoint: bool = False,
        push_to_hub: bool = False,
    ) -> None:
        self.merge_config = merge_config or MergeConfig()
        self.merge_at_every_checkpoint = merge_at_every_checkpoint
        self.push_to_hub = push_to_hub

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See what there is to merge."""
        model = extract_model_from_parallel(kwargs["model"])
        if hasattr(model, "peft_config"):
            raise ValueError(
                "MergeModelCallback merges whole models, but an adapter is trained: merge it by "
                "merge_and_unload() and then call merge_models"
            )
        if self.merge_config.target_model_path is None:
            self.merge_config.target_model_path = getattr(model.config, "_name_or_path", "") or None
        if self.merge_config.target_model_path is None:
            raise ValueError(
                "merge_config.target_model_path is not set, and the model was not loaded from "
                "anywhere: set it"
            )
        AutoConfig.from_pretrained(self.merge_config.target_model_path)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Merge a checkpoint that has just been written."""
        if self.merge_at_every_checkpoint and state.is_world_process_zero:
            self._merge(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Merge the last checkpoint; the model is written there if it has not been."""
        if self.merge_at_every_checkpoint or not state.is_world_process_zero:
            return
        folder = _checkpoint(args, state)
        if not (folder / "config.json").exists():
            extract_model_from_parallel(kwargs["model"]).save_pretrained(folder)
            if kwargs.get("processing_class") is not None:
                kwargs["processing_class"].save_pretrained(folder)
        self._merge(args, state)

    def _merge(self, args: TrainingArguments, state: TrainerState) -> None:
        folder = _checkpoint(args, state)
        self.merge_config.policy_model_path = str(folder)
        merged = str(folder / "merged")
        merge_models(self.merge_config, merged)
        if self.push_to_hub:
            upload_model_to_hf(merged, f"{Path(args.output_dir).name}_{folder.name}_merged")


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
