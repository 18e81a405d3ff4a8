"""OnlineDPOTrainer and OnlineDPOConfig as they were called since TRL 0.11."""

from __future__ import annotations

from fastrl.legacy.binding import LegacyInit
from fastrl.legacy.changes import Ignored, Refused, Renamed, Table
from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS, defaults_of

ONLINE_DPO = LegacyInit(
    order=(
        "model",
        "ref_model",
        "reward_model",
        "judge",
        "args",
        "data_collator",
        "train_dataset",
        "eval_dataset",
        "tokenizer",
        "peft_config",
        "compute_metrics",
        "callbacks",
        "optimizers",
        "preprocess_logits_for_metrics",
    ),
    changes={
        "reward_model": Renamed("reward_funcs"),
        "reward_processing_class": Renamed("reward_processing_classes"),
        "tokenizer": Renamed("processing_class"),
    },
    first="0.11",
)

ONLINE_DPO_DEFAULTS = defaults_of(learning_rate=5e-7)

ONLINE_DPO_FIELDS: Table = {
    **TRAINING_ARGUMENTS,
    "dataset_num_proc": Ignored("prompts are prepared as they are sampled from"),
    "judge": Refused("pass judge= to the trainer"),
    "gpu_memory_utilization": Renamed("vllm_gpu_memory_utilization"),
    "vllm_guided_decoding_regex": Renamed("vllm_structured_outputs_regex"),
}
