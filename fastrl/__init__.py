"""Post-training of language models with TRL's trainers, on native hot paths and packed layouts.

Names are imported at first use, so that `import fastrl` loads neither a model library nor a GPU
context.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that defines it.
_EXPORTS = {
    "AdaptiveKLController": "fastrl.algos.kl_control",
    "apply_chat_template": "fastrl.data.chat",
    "AutoModelForCausalLMWithValueHead": "fastrl.models",
    "AutoModelForSeq2SeqLMWithValueHead": "fastrl.models",
    "BEMACallback": "fastrl.train.callbacks",
    "clone_chat_template": "fastrl.data.chat_setup",
    "ConstantLengthDataset": "fastrl.data.constant_length",
    "create_reference_model": "fastrl.models",
    "DataCollatorForCompletionOnlyLM": "fastrl.data.collate_legacy",
    "DatasetConfig": "fastrl.train.script_arguments",
    "DatasetMixtureConfig": "fastrl.train.script_arguments",
    "DPOConfig": "fastrl.algos.dpo_config",
    "DPOTrainer": "fastrl.algos.dpo",
    "extract_prompt": "fastrl.data.formats",
    "FixedKLController": "fastrl.algos.kl_control",
    "get_dataset": "fastrl.train.script_arguments",
    "get_kbit_device_map": "fastrl.train.model_config",
    "get_peft_config": "fastrl.train.model_config",
    "get_quantization_config": "fastrl.train.model_config",
    "get_training_chat_template": "fastrl.data.training_template",
    "GRPOConfig": "fastrl.algos.grpo_config",
    "GRPOTrainer": "fastrl.algos.grpo",
    "init_zero_verbose": "fastrl.train.parser",
    "is_conversational": "fastrl.data.formats",
    "is_conversational_from_value": "fastrl.data.formats",
    "KTOConfig": "fastrl.algos.kto_config",
    "KTOTrainer": "fastrl.algos.kto",
    "LogCompletionsCallback": "fastrl.train.callbacks",
    "LogFileCallback": "fastrl.train.callbacks",
    "maybe_apply_chat_template": "fastrl.data.chat",
    "maybe_convert_to_chatml": "fastrl.data.formats",
    "maybe_extract_prompt": "fastrl.data.formats",
    "maybe_unpair_preference_dataset": "fastrl.data.formats",
    "ModelConfig": "fastrl.train.model_config",
    "OnlineDPOConfig": "fastrl.algos.online_dpo_config",
    "OnlineDPOTrainer": "fastrl.algos.online_dpo",
    "pack_dataset": "fastrl.data.packing",
    "PPOConfig": "fastrl.algos.ppo_config",
    "PPOTrainConfig": "fastrl.algos.ppo_train_config",
    "PPOTrainer": "fastrl.algos.ppo",
    "PPOv2Config": "fastrl.algos.ppo_train_config",
    "PPOv2Trainer": "fastrl.algos.ppo_train",
    "prepare_multimodal_messages": "fastrl.data.chat",
    "PreTrainedModelWrapper": "fastrl.models",
    "RewardConfig": "fastrl.algos.reward_config",
    "RewardTrainer": "fastrl.algos.reward",
    "RichProgressCallback": "fastrl.train.callbacks",
    "RLOOConfig": "fastrl.algos.rloo_config",
    "RLOOTrainer": "fastrl.algos.rloo",
    "RunningMoments": "fastrl.train.moments",
    "ScriptArguments": "fastrl.train.script_arguments",
    "set_seed": "fastrl.train.seed",
    "setup_chat_format": "fastrl.data.chat_setup",
    "SFTConfig": "fastrl.algos.sft_config",
    "SFTTrainer": "fastrl.algos.sft",
    "supports_tool_calling": "fastrl.data.templates",
    "SyncRefModelCallback": "fastrl.train.callbacks",
    "TrlParser": "fastrl.train.parser",
    "unpair_preference_dataset": "fastrl.data.formats",
    "WeaveCallback": "fastrl.train.callbacks",
}
_SUBPACKAGES = ("algos", "data", "models", "ops", "rewards", "rollout", "train")

__all__ = sorted([*_EXPORTS, "__version__"])

if TYPE_CHECKING:
    from fastrl.algos.kl_control import AdaptiveKLController, FixedKLController
    from fastrl.algos.ppo import PPOTrainer
    from fastrl.algos.ppo_config import PPOConfig
    from fastrl.data.chat import (
        apply_chat_template,
        maybe_apply_chat_template,
        prepare_multimodal_messages,
    )
    from fastrl.data.chat_setup import clone_chat_template, setup_chat_format
    from fastrl.data.collate_legacy import DataCollatorForCompletionOnlyLM
    from fastrl.data.constant_length import ConstantLengthDataset
    from fastrl.data.formats import (
        extract_prompt,
        is_conversational,
        is_conversational_from_value,
        maybe_convert_to_chatml,
        maybe_extract_prompt,
        maybe_unpair_preference_dataset,
        unpair_preference_dataset,
    )
    from fastrl.data.packing import pack_dataset
    from fastrl.data.templates import supports_tool_calling
    from fastrl.data.training_template import get_training_chat_template
    from fastrl.models import (
        AutoModelForCausalLMWithValueHead,
        AutoModelForSeq2SeqLMWithValueHead,
        PreTrainedModelWrapper,
        create_reference_model,
    )
    from fastrl.train.callbacks import (
        BEMACallback,
        LogCompletionsCallback,
        LogFileCallback,
        RichProgressCallback,
        SyncRefModelCallback,
        WeaveCallback,
    )
    from fastrl.train.model_config import (
        ModelConfig,
        get_kbit_device_map,
        get_peft_config,
        get_quantization_config,
    )
    from fastrl.train.moments import RunningMoments
    from fastrl.train.parser import (
        TrlParser,
        init_zero_verbose,
    )
    from fastrl.train.script_arguments import (
        DatasetConfig,
        DatasetMixtureConfig,
        ScriptArguments,
        get_dataset,
    )
    from fastrl.train.seed import set_seed


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"fastrl.{name}")
    raise AttributeError(f"module 'fastrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_SUBPACKAGES])
