"""TRL's module paths, of 0.7 to 1.16, and the names that each answers.

`MODULES[path][name]` is where `name` lives, as "module" or "module:attribute"; "" is the top level.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastrl.compat.homes import HOMES

_TOP = """AdaptiveKLController add_response_schema AlignPropConfig AlignPropTrainer AllTrueJudge
    apply_chat_template DDPOConfig DDPOPipelineOutput DDPOSchedulerOutput
    DDPOStableDiffusionPipeline DDPOTrainer DefaultDDPOStableDiffusionPipeline
    AutoModelForCausalLMWithValueHead AutoModelForSeq2SeqLMWithValueHead BaseBinaryJudge BaseJudge
    BasePairwiseJudge BaseRankJudge BCOConfig BCOTrainer BEMACallback BestOfNSampler
    clone_chat_template
    ConstantLengthDataset CPOConfig CPOTrainer create_reference_model
    DataCollatorForCompletionOnlyLM DatasetConfig
    DatasetMixtureConfig DistillationConfig DistillationTrainer GKDConfig GKDTrainer
    DPOConfig DpoArgumentParser=TrlParser DPOScriptArguments
    DpoScriptArguments=DPOScriptArguments DPOTrainer extract_prompt FDivergenceConstants
    FDivergenceType FixedKLController get_dataset get_kbit_device_map get_peft_config
    get_quantization_config get_training_chat_template GRPOConfig GRPOTrainer HfPairwiseJudge
    init_zero_verbose install_as_trl is_bitsandbytes_available is_conversational
    is_conversational_from_value is_deepspeed_available is_diffusers_available
    is_liger_kernel_available is_llm_blender_available is_llmblender_available
    is_mergekit_available is_npu_available is_peft_available is_pil_available is_rich_available
    is_unsloth_available is_vllm_available is_wandb_available is_xpu_available IterativeSFTConfig
    IterativeSFTTrainer KTOConfig KTOTrainer LogCompletionsCallback LogFileCallback
    maybe_apply_chat_template
    maybe_convert_to_chatml maybe_extract_prompt maybe_unpair_preference_dataset
    NashMDConfig NashMDTrainer XPOConfig XPOTrainer
    MergeModelCallback ModelConfig OnlineDPOConfig OnlineDPOTrainer OpenAIPairwiseJudge
    ORPOConfig ORPOTrainer
    pack_dataset pack_examples PairRMJudge PPOConfig PPOTrainConfig PPOTrainer PPOv2Config
    PPOv2Trainer prepare_multimodal_messages prepare_multimodal_messages_vllm PreTrainedModelWrapper
    PRMConfig PRMTrainer
    RandomPairwiseJudge RandomRankJudge RewardConfig RewardTrainer RichProgressCallback
    RLOOConfig RLOOTrainer RunningMoments ScriptArguments set_api set_seed setup_chat_format
    SftArgumentParser=TrlParser SFTConfig SFTScriptArguments
    SftScriptArguments=SFTScriptArguments SFTTrainer SUPPORTED_ARCHITECTURES
    supports_tool_calling SyncRefModelCallback TextEnvironment TextHistory TrlParser
    truncate_dataset unpair_preference_dataset WeaveCallback WinRateCallback"""

_CORE = """LengthSampler PPODecorators WANDB_PADDING add_suffix average_torch_dicts clip_by_value
    convert_to_scalar entropy_from_logits flatten_dict logprobs_from_logits masked_mean masked_var
    masked_whiten pad_to_size randn_tensor respond_to_batch set_seed stack_dicts stats_to_np
    top_k_top_p_filtering whiten"""
_COLUMNS = "get_dataset_column_names=fastrl.data.formats:column_names"
_DATA = f"""{_COLUMNS} apply_chat_template extract_prompt is_conversational
    is_conversational_from_value maybe_apply_chat_template maybe_convert_to_chatml
    maybe_extract_prompt maybe_unpair_preference_dataset pack_dataset pack_examples
    prepare_multimodal_messages prepare_multimodal_messages_vllm truncate_dataset
    unpair_preference_dataset"""
_CHAT = """add_response_schema clone_chat_template get_training_chat_template
    has_generation_markers is_chat_template_prefix_preserving is_chat_template_stop_token_trained
    parse_response supports_tool_calling"""
_SCRIPTS = """DPOScriptArguments DatasetConfig DatasetMixtureConfig DpoScriptArguments
    RewardScriptArguments SFTScriptArguments ScriptArguments SftScriptArguments TrlParser
    get_dataset init_zero_verbose"""
_JUDGES = """AllTrueJudge BaseBinaryJudge BaseJudge BasePairwiseJudge BaseRankJudge
    DEFAULT_PAIRWISE_SYSTEM_PROMPT HfPairwiseJudge OpenAIPairwiseJudge PairRMJudge
    RandomPairwiseJudge RandomRankJudge"""
_CALLBACKS = """BEMACallback LogCompletionsCallback MergeModelCallback RichProgressCallback
    SyncRefModelCallback WeaveCallback WinRateCallback"""
_DIFFUSION = """DDPOPipelineOutput DDPOSchedulerOutput DDPOStableDiffusionPipeline
    DefaultDDPOStableDiffusionPipeline"""
_VALUE_HEADS = "AutoModelForCausalLMWithValueHead AutoModelForSeq2SeqLMWithValueHead ValueHead"
_FORMATTING = """conversations_formatting_function get_formatting_func_from_dataset
    instructions_formatting_function"""
_UTILS = """AdaptiveKLController ConstantLengthDataset DataCollatorForChatML
    DataCollatorForCompletionOnlyLM
    DPODataCollatorWithPadding FixedKLController RepeatSampler RewardDataCollatorWithPadding
    RunningMoments add_bos_token_if_needed add_eos_token_if_needed cap_exp
    create_model_from_path decode_and_strip_padding entropy_from_logits first_true_indices
    flush_left flush_right get_exp_cap get_kbit_device_map get_peft_config
    get_quantization_config nanmax nanmin nanstd pad pad_to_length repeat_iterable_dataset
    selective_log_softmax selective_log_softmax_and_entropy truncate_response truncate_right
    OnPolicyConfig OnlineTrainerState PerPromptStatTracker SIMPLE_CHAT_TEMPLATE
    SIMPLE_SFT_CHAT_TEMPLATE batch_generation compute_accuracy disable_dropout_in_model empty_cache
    exact_div forward generate generate_model_card get_comet_experiment_url get_global_statistics
    get_reward identity log_table_to_comet_experiment neftune_post_forward_hook
    peft_module_casting_to_bf16 print_prompt_completions_sample print_rich_table
    remove_none_values shuffle_sequence_dict split_pixel_values_by_grid split_tensor_dict
    strip_images_from_messages trl_sanitze_kwargs_for_tagging unsplit_pixel_values_by_grid
    use_adapter ensure_master_addr_port RichProgressCallback SyncRefModelCallback"""

# Algorithm -> the first word of its classes; `trainer.<algorithm>_trainer` and `_config` have them.
_ALGORITHMS = {
    "bco": "BCO",
    "cpo": "CPO",
    "alignprop": "AlignProp",
    "ddpo": "DDPO",
    "distillation": "Distillation",
    "dpo": "DPO",
    "gkd": "GKD",
    "grpo": "GRPO",
    "iterative_sft": "IterativeSFT",
    "kto": "KTO",
    "nash_md": "NashMD",
    "online_dpo": "OnlineDPO",
    "orpo": "ORPO",
    "ppo": "PPO",
    "ppov2": "PPOv2",
    "prm": "PRM",
    "reward": "Reward",
    "rloo": "RLOO",
    "sft": "SFT",
    "xpo": "XPO",
}
_POLICY_AND_VALUE = "PolicyAndValueWrapper=PolicyAndValue"
_BEMA = "BEMACallback=fastrl.train.callbacks.bema_reference:BEMACallback"
_CLASSIC_BASE = "BaseTrainer=fastrl.train.classic:ClassicTrainer"
# What those modules have beside the trainer.
_BESIDE = {
    "dpo": "DataCollatorForPreference=fastrl.data.collate_preference:DataCollatorForPreference",
    "grpo": """RepeatRandomSampler=RepeatSampler RepeatSampler identity nanmax nanmin nanstd
        shuffle_sequence_dict shuffle_tensor_dict=shuffle_sequence_dict split_tensor_dict""",
    "kto": "DataCollatorForUnpairedPreference",
    "ppo": _POLICY_AND_VALUE,
    "ppov2": _POLICY_AND_VALUE,
    "prm": "compute_accuracy",
    "reward": f"""DataCollatorForPreference=fastrl.data.collate_reward:DataCollatorForPreference
        compute_accuracy {_COLUMNS}""",
    "sft": f"DataCollatorForLanguageModeling {_COLUMNS} remove_none_values",
}
# `experimental.ppo` never had another form.
_PPO_CONFIG = "PPOConfig=PPOTrainConfig"
_PPO_TRAINER = "PPOTrainer=PPOv2Trainer"

# Path below the root -> names, each "name" (at its home), "name=other" or "name=module:attribute".
_PATHS: dict[str, str] = {
    "": _TOP,
    "chat_template_utils": _CHAT,
    "commands": f"{_SCRIPTS} DpoArgumentParser=TrlParser SftArgumentParser=TrlParser main",
    "commands.cli": "main",
    "commands.cli_utils": _SCRIPTS,
    "commands.utils": _SCRIPTS,
    "core": _CORE,
    "data_utils": _DATA,
    "env_utils": "strtobool",
    "environment": "TextEnvironment TextHistory",
    "environment.base_environment": "StringStoppingCriteria TextEnvironment TextHistory",
    "experimental": "",
    "experimental.bco": "BCOConfig BCOTrainer",
    "experimental.bco.bco_config": "BCOConfig",
    "experimental.bco.bco_trainer": "BCOTrainer",
    "experimental.bema_for_ref_model": f"{_BEMA} DPOTrainer",
    "experimental.bema_for_ref_model.callback": _BEMA,
    "experimental.bema_for_ref_model.dpo_trainer": "DPOTrainer",
    "experimental.distillation": "DistillationConfig DistillationTrainer",
    "experimental.distillation.distillation_config": "DistillationConfig",
    "experimental.distillation.distillation_trainer": "DistillationTrainer",
    "experimental.cpo": "CPOConfig CPOTrainer",
    "experimental.cpo.cpo_config": "CPOConfig",
    "experimental.cpo.cpo_trainer": "CPOTrainer",
    "experimental.gkd": "GKDConfig GKDTrainer",
    "experimental.gkd.gkd_config": "GKDConfig",
    "experimental.gkd.gkd_trainer": "GKDTrainer",
    "experimental.judges": _JUDGES,
    "experimental.judges.judges": _JUDGES,
    "experimental.kto": "KTOConfig KTOTrainer",
    "experimental.kto.kto_config": "KTOConfig",
    "experimental.kto.kto_trainer": "KTOTrainer",
    "experimental.merge_model_callback": "MergeConfig MergeModelCallback merge_models",
    "experimental.nash_md": "NashMDConfig NashMDTrainer",
    "experimental.nash_md.nash_md_config": "NashMDConfig",
    "experimental.nash_md.nash_md_trainer": "GeometricMixtureWrapper NashMDTrainer",
    "experimental.online_dpo": "OnlineDPOConfig OnlineDPOTrainer",
    "experimental.online_dpo.online_dpo_config": "OnlineDPOConfig",
    "experimental.online_dpo.online_dpo_trainer": "OnlineDPOTrainer",
    "experimental.orpo": "ORPOConfig ORPOTrainer",
    "experimental.orpo.orpo_config": "ORPOConfig",
    "experimental.orpo.orpo_trainer": "ORPOTrainer",
    "experimental.ppo": f"{_PPO_CONFIG} {_PPO_TRAINER} PreTrainedModelWrapper {_VALUE_HEADS}",
    "experimental.ppo.modeling_value_head": f"PreTrainedModelWrapper {_VALUE_HEADS}",
    "experimental.ppo.ppo_config": _PPO_CONFIG,
    "experimental.ppo.ppo_trainer": f"""{_PPO_TRAINER} {_POLICY_AND_VALUE} OnlineTrainerState
        batch_generation exact_div forward generate masked_mean masked_var masked_whiten
        print_rich_table truncate_response""",
    "experimental.prm": "PRMConfig PRMTrainer",
    "experimental.prm.prm_config": "PRMConfig",
    "experimental.prm.prm_trainer": "PRMTrainer compute_accuracy",
    "experimental.utils": """DataCollatorForChatML enable_gradient_checkpointing
        DPODataCollatorWithPadding LAYER_PATTERNS SIMPLE_CHAT_TEMPLATE
        add_bos_token_if_needed add_eos_token_if_needed create_reference_model empty_cache
        first_true_indices get_reward pad_to_length peft_module_casting_to_bf16
        truncate_dataset truncate_right""",
    "experimental.winrate_callback": "WinRateCallback",
    "experimental.xpo": "XPOConfig XPOTrainer",
    "experimental.xpo.xpo_config": "XPOConfig",
    "experimental.xpo.xpo_trainer": "XPOTrainer",
    "extras": "BestOfNSampler",
    "extras.best_of_n_sampler": "BestOfNSampler",
    "extras.dataset_formatting": f"""{_FORMATTING}
        FORMAT_MAPPING=fastrl.data.formatting:FORMAT_MAPPING""",
    "extras.profiling": "ProfilingContext profiling_context profiling_decorator",
    "import_utils": " ".join(n for n in HOMES if HOMES[n] == "fastrl.compat.availability"),
    "mergekit_utils": "MergeConfig merge_models upload_model_to_hf",
    "models": f"""{_VALUE_HEADS} {_DIFFUSION} PreTrainedModelWrapper SUPPORTED_ARCHITECTURES
        clone_chat_template create_reference_model setup_chat_format
        GeometricMixtureWrapper unwrap_model_for_generation""",
    "models.auxiliary_modules": "AestheticScorer aesthetic_scorer",
    "models.modeling_base": """GeometricMixtureWrapper LAYER_PATTERNS PreTrainedModelWrapper
        create_reference_model""",
    "models.modeling_sd_base": f"""{_DIFFUSION} pipeline_step pipeline_step_with_grad
        scheduler_step""",
    "models.modeling_value_head": f"{_VALUE_HEADS} PreTrainedModelWrapper",
    "models.utils": """ChatMlSpecialTokens FORMAT_MAPPING=fastrl.data.chat_setup:FORMAT_MAPPING
        disable_gradient_checkpointing enable_gradient_checkpointing
        LAYER_PATTERNS peft_module_casting_to_bf16 SUPPORTED_ARCHITECTURES clone_chat_template
        create_reference_model setup_chat_format unwrap_model_for_generation""",
    "rewards": """accuracy_reward get_cosine_scaled_reward get_repetition_penalty_reward
        get_soft_overlong_punishment reasoning_accuracy_reward think_format_reward""",
    "rewards.accuracy_rewards": """accuracy_reward get_cosine_scaled_reward
        reasoning_accuracy_reward""",
    "rewards.format_rewards": "think_format_reward",
    "rewards.other_rewards": "get_repetition_penalty_reward get_soft_overlong_punishment",
    "scripts": _SCRIPTS,
    **{
        f"scripts.{name}": f"main=fastrl.cli.{name}:main make_parser=fastrl.cli.{name}:make_parser"
        for name in ("distillation", "dpo", "grpo", "kto", "reward", "rloo", "sft")
    },
    "scripts.utils": _SCRIPTS,
    "trainer": f"""ensure_master_addr_port {_CALLBACKS} {_JUDGES} {_CLASSIC_BASE} compute_accuracy
        disable_dropout_in_model empty_cache peft_module_casting_to_bf16
        AdaptiveKLController ConstantLengthDataset
        DataCollatorForCompletionOnlyLM FDivergenceConstants FDivergenceType FixedKLController
        ModelConfig RunningMoments get_kbit_device_map get_peft_config get_quantization_config
        {" ".join(f"{a}Config {a}Trainer" for a in _ALGORITHMS.values())}""",
    **{
        f"trainer.{name}_trainer": f"{title}Trainer {_BESIDE.get(name, '')}"
        for name, title in _ALGORITHMS.items()
    },
    **{f"trainer.{name}_config": f"{title}Config" for name, title in _ALGORITHMS.items()},
    "trainer.base": _CLASSIC_BASE,
    "trainer.base_trainer": "BaseTrainer=fastrl.train.trainer:Trainer",
    "trainer.callbacks": _CALLBACKS,
    "trainer.judges": _JUDGES,
    "trainer.model_config": "ModelConfig",
    "trainer.utils": _UTILS,
    "utils": "ScriptArguments",
}
for _name, _title in (("grpo", "GRPO"), ("rloo", "RLOO")):
    _PATHS[f"scripts.{_name}"] += f" {_title}ScriptArguments=RewardedArguments"
_PATHS["trainer.dpo_config"] += " FDivergenceConstants FDivergenceType"


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
