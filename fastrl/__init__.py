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
    "AutoModelForCausalLMWithValueHead": "fastrl.models",
    "AutoModelForSeq2SeqLMWithValueHead": "fastrl.models",
    "BEMACallback": "fastrl.train.callbacks",
    "create_reference_model": "fastrl.models",
    "DatasetConfig": "fastrl.train.script_arguments",
    "DatasetMixtureConfig": "fastrl.train.script_arguments",
    "DPOConfig": "fastrl.algos.dpo_config",
    "DPOTrainer": "fastrl.algos.dpo",
    "FixedKLController": "fastrl.algos.kl_control",
    "get_dataset": "fastrl.train.script_arguments",
    "get_kbit_device_map": "fastrl.train.model_config",
    "get_peft_config": "fastrl.train.model_config",
    "get_quantization_config": "fastrl.train.model_config",
    "init_zero_verbose": "fastrl.train.parser",
    "KTOConfig": "fastrl.algos.kto_config",
    "KTOTrainer": "fastrl.algos.kto",
    "LogCompletionsCallback": "fastrl.train.callbacks",
    "LogFileCallback": "fastrl.train.callbacks",
    "ModelConfig": "fastrl.train.model_config",
    "PPOConfig": "fastrl.algos.ppo_config",
    "PPOTrainer": "fastrl.algos.ppo",
    "PreTrainedModelWrapper": "fastrl.models",
    "RewardConfig": "fastrl.algos.reward_config",
    "RewardTrainer": "fastrl.algos.reward",
    "RichProgressCallback": "fastrl.train.callbacks",
    "RunningMoments": "fastrl.train.moments",
    "ScriptArguments": "fastrl.train.script_arguments",
    "set_seed": "fastrl.train.seed",
    "SFTConfig": "fastrl.algos.sft_config",
    "SFTTrainer": "fastrl.algos.sft",
    "SyncRefModelCallback": "fastrl.train.callbacks",
    "TrlParser": "fastrl.train.parser",
    "WeaveCallback": "fastrl.train.callbacks",
}
_SUBPACKAGES = ("algos", "models", "ops", "rollout", "train")

__all__ = sorted([*_EXPORTS, "__version__"])

if TYPE_CHECKING:
    from fastrl.algos.kl_control import AdaptiveKLController, FixedKLController
    from fastrl.algos.ppo import PPOTrainer
    from fastrl.algos.ppo_config import PPOConfig
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
