"""Post-training of language models with TRL's trainers, on native hot paths and packed layouts.

Names are imported at first use, so that `import fastrl` loads neither a model library nor a GPU
context.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastrl.compat import finder
from fastrl.compat.modules import MODULES

__version__ = "0.1.0"

# Public name -> "module" or "module:attribute" that defines it.
_EXPORTS = MODULES[""]
_SUBPACKAGES = ("algos", "compat", "data", "models", "ops", "rewards", "rollout", "train")

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
    if name in _SUBPACKAGES:
        return importlib.import_module(f"fastrl.{name}")
    return finder.resolve("fastrl", "", name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBPACKAGES, *finder.names_in("")})


finder.install("fastrl")
