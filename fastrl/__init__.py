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
    from fastrl.algos.align_prop import AlignPropTrainer
    from fastrl.algos.align_prop_config import AlignPropConfig
    from fastrl.algos.bco import BCOTrainer
    from fastrl.algos.bco_config import BCOConfig
    from fastrl.algos.cpo import CPOTrainer
    from fastrl.algos.cpo_config import CPOConfig
    from fastrl.algos.ddpo import DDPOTrainer
    from fastrl.algos.ddpo_config import DDPOConfig
    from fastrl.algos.distillation import DistillationTrainer
    from fastrl.algos.distillation_config import DistillationConfig
    from fastrl.algos.dpo import DPOTrainer
    from fastrl.algos.dpo_config import DPOConfig, FDivergenceConstants, FDivergenceType
    from fastrl.algos.gkd import GKDTrainer
    from fastrl.algos.gkd_config import GKDConfig
    from fastrl.algos.grpo import GRPOTrainer
    from fastrl.algos.grpo_config import GRPOConfig
    from fastrl.algos.iterative_sft import IterativeSFTConfig, IterativeSFTTrainer
    from fastrl.algos.kl_control import AdaptiveKLController, FixedKLController
    from fastrl.algos.kto import KTOTrainer
    from fastrl.algos.kto_config import KTOConfig
    from fastrl.algos.nash_md import NashMDTrainer
    from fastrl.algos.nash_md_config import NashMDConfig
    from fastrl.algos.online_dpo import OnlineDPOTrainer
    from fastrl.algos.online_dpo_config import OnlineDPOConfig
    from fastrl.algos.orpo import ORPOTrainer
    from fastrl.algos.orpo_config import ORPOConfig
    from fastrl.algos.ppo import PPOTrainer
    from fastrl.algos.ppo_config import PPOConfig
    from fastrl.algos.ppo_train import PPOv2Trainer
    from fastrl.algos.ppo_train_config import PPOTrainConfig, PPOv2Config
    from fastrl.algos.prm import PRMTrainer
    from fastrl.algos.prm_config import PRMConfig
    from fastrl.algos.reward import RewardTrainer
    from fastrl.algos.reward_config import RewardConfig
    from fastrl.algos.rloo import RLOOTrainer
    from fastrl.algos.rloo_config import RLOOConfig
    from fastrl.algos.sft import SFTTrainer
    from fastrl.algos.sft_config import SFTConfig
    from fastrl.algos.xpo import XPOTrainer
    from fastrl.algos.xpo_config import XPOConfig
    from fastrl.compat.api import set_api
    from fastrl.compat.as_trl import install_as_trl
    from fastrl.compat.availability import (
        is_bitsandbytes_available,
        is_deepspeed_available,
        is_diffusers_available,
        is_liger_kernel_available,
        is_llm_blender_available,
        is_llmblender_available,
        is_mergekit_available,
        is_npu_available,
        is_peft_available,
        is_pil_available,
        is_rich_available,
        is_unsloth_available,
        is_vllm_available,
        is_wandb_available,
        is_xpu_available,
    )
    from fastrl.data.chat import (
        apply_chat_template,
        maybe_apply_chat_template,
        prepare_multimodal_messages,
        prepare_multimodal_messages_vllm,
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
    from fastrl.data.packing import pack_dataset, pack_examples, truncate_dataset
    from fastrl.data.templates import supports_tool_calling
    from fastrl.data.training_template import get_training_chat_template
    from fastrl.models.diffusion import (
        DDPOStableDiffusionPipeline,
        DefaultDDPOStableDiffusionPipeline,
    )
    from fastrl.models.diffusion_sampling import DDPOPipelineOutput, DDPOSchedulerOutput
    from fastrl.models.reference import create_reference_model
    from fastrl.models.value_head import (
        SUPPORTED_ARCHITECTURES,
        AutoModelForCausalLMWithValueHead,
        AutoModelForSeq2SeqLMWithValueHead,
    )
    from fastrl.models.wrapper import PreTrainedModelWrapper
    from fastrl.rewards.judges import (
        AllTrueJudge,
        BaseBinaryJudge,
        BaseJudge,
        BasePairwiseJudge,
        BaseRankJudge,
        HfPairwiseJudge,
        OpenAIPairwiseJudge,
        PairRMJudge,
        RandomPairwiseJudge,
        RandomRankJudge,
    )
    from fastrl.rollout.best_of_n import BestOfNSampler
    from fastrl.rollout.messages import add_response_schema
    from fastrl.rollout.text_environment import TextEnvironment
    from fastrl.rollout.text_history import TextHistory
    from fastrl.train.callbacks import (
        BEMACallback,
        LogCompletionsCallback,
        LogFileCallback,
        RichProgressCallback,
        SyncRefModelCallback,
        WeaveCallback,
    )
    from fastrl.train.callbacks.merge_model import MergeModelCallback
    from fastrl.train.callbacks.win_rate import WinRateCallback
    from fastrl.train.model_config import (
        ModelConfig,
        get_kbit_device_map,
        get_peft_config,
        get_quantization_config,
    )
    from fastrl.train.moments import RunningMoments
    from fastrl.train.parser import TrlParser, init_zero_verbose
    from fastrl.train.parser import TrlParser as DpoArgumentParser
    from fastrl.train.parser import TrlParser as SftArgumentParser
    from fastrl.train.script_arguments import (
        DatasetConfig,
        DatasetMixtureConfig,
        ScriptArguments,
        get_dataset,
    )
    from fastrl.train.script_arguments_classic import DPOScriptArguments, SFTScriptArguments
    from fastrl.train.script_arguments_classic import DPOScriptArguments as DpoScriptArguments
    from fastrl.train.script_arguments_classic import SFTScriptArguments as SftScriptArguments
    from fastrl.train.seed import set_seed


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"fastrl.{name}")
    return finder.resolve("fastrl", "", name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBPACKAGES, *finder.names_in("")})


finder.install("fastrl")
