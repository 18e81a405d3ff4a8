"""TRL's module paths, of 0.7 to 1.16, and the names that each answers.

`MODULES[path][name]` is where `name` lives, as "module" or "module:attribute"; "" is the top level.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastrl.compat.homes import HOMES

_TRAINERS = {
    "dpo": "DPO",
    "grpo": "GRPO",
    "kto": "KTO",
    "online_dpo": "OnlineDPO",
    "ppo": "PPO",
    "ppov2": "PPOv2",
    "reward": "Reward",
    "rloo": "RLOO",
    "sft": "SFT",
}
_CORE = """LengthSampler PPODecorators WANDB_PADDING add_suffix average_torch_dicts clip_by_value
    convert_to_scalar entropy_from_logits flatten_dict logprobs_from_logits masked_mean masked_var
    masked_whiten pad_to_size randn_tensor respond_to_batch set_seed stack_dicts stats_to_np
    whiten"""

_TOP = """AdaptiveKLController add_response_schema AllTrueJudge apply_chat_template
    AutoModelForCausalLMWithValueHead AutoModelForSeq2SeqLMWithValueHead BaseBinaryJudge BaseJudge
    BasePairwiseJudge BaseRankJudge BEMACallback BestOfNSampler clone_chat_template
    ConstantLengthDataset create_reference_model DataCollatorForCompletionOnlyLM DatasetConfig
    DatasetMixtureConfig DPOConfig DpoArgumentParser=TrlParser DPOScriptArguments
    DpoScriptArguments=DPOScriptArguments DPOTrainer extract_prompt FDivergenceConstants
    FDivergenceType FixedKLController get_dataset get_kbit_device_map get_peft_config
    get_quantization_config get_training_chat_template GRPOConfig GRPOTrainer HfPairwiseJudge
    init_zero_verbose install_as_trl is_bitsandbytes_available is_conversational
    is_conversational_from_value is_diffusers_available is_liger_kernel_available
    is_llmblender_available is_npu_available is_peft_available is_pil_available
    is_wandb_available is_xpu_available IterativeSFTConfig IterativeSFTTrainer KTOConfig
    KTOTrainer LogCompletionsCallback LogFileCallback maybe_apply_chat_template
    maybe_convert_to_chatml maybe_extract_prompt maybe_unpair_preference_dataset
    MergeModelCallback ModelConfig OnlineDPOConfig OnlineDPOTrainer OpenAIPairwiseJudge
    pack_dataset PairRMJudge PPOConfig PPOTrainConfig PPOTrainer PPOv2Config PPOv2Trainer
    prepare_multimodal_messages prepare_multimodal_messages_vllm PreTrainedModelWrapper
    RandomPairwiseJudge RandomRankJudge RewardConfig RewardTrainer RichProgressCallback
    RLOOConfig RLOOTrainer RunningMoments ScriptArguments set_api set_seed setup_chat_format
    SftArgumentParser=TrlParser SFTConfig SFTScriptArguments
    SftScriptArguments=SFTScriptArguments SFTTrainer SUPPORTED_ARCHITECTURES
    supports_tool_calling SyncRefModelCallback TextEnvironment TextHistory TrlParser
    truncate_dataset unpair_preference_dataset WeaveCallback WinRateCallback"""

# Path below the root -> names, each "name" (at its home), "name=other" or "name=module:attribute".
_PATHS: dict[str, str] = {
    "": _TOP,
    "core": _CORE,
    "environment": "TextEnvironment TextHistory",
    "environment.base_environment": "StringStoppingCriteria TextEnvironment TextHistory",
    "trainer": "PPOTrainer PPOConfig",
    "trainer.utils": "AdaptiveKLController FixedKLController RunningMoments",
    **{f"trainer.{name}_trainer": f"{title}Trainer" for name, title in _TRAINERS.items()},
    **{f"trainer.{name}_config": f"{title}Config" for name, title in _TRAINERS.items()},
    "models": "setup_chat_format",
    "models.modeling_value_head": """AutoModelForCausalLMWithValueHead
        AutoModelForSeq2SeqLMWithValueHead ValueHead""",
}


def _rows(names: str) -> dict[str, str]:
    rows = {}
    for word in names.split():
        name, _, elsewhere = word.partition("=")
        if ":" in elsewhere:
            rows[name] = elsewhere
        else:
            target = elsewhere or name
            rows[name] = HOMES[target] if target == name else f"{HOMES[target]}:{target}"
    return rows


MODULES: Mapping[str, Mapping[str, str]] = {path: _rows(names) for path, names in _PATHS.items()}
