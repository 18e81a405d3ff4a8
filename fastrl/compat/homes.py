"""Where each public name lives: the one place that defines it, whatever TRL's path to it is."""

from __future__ import annotations

# Module -> the names that scripts may ask it for.
_NAMES = {
    "fastrl.algos.cpo": "CPOTrainer",
    "fastrl.algos.cpo_config": "CPOConfig",
    "fastrl.algos.align_prop": "AlignPropTrainer",
    "fastrl.algos.align_prop_config": "AlignPropConfig",
    "fastrl.algos.ddpo": "DDPOTrainer",
    "fastrl.algos.ddpo_config": "DDPOConfig",
    "fastrl.algos.distillation": "DistillationTrainer",
    "fastrl.algos.distillation_config": "DistillationConfig",
    "fastrl.algos.bco": "BCOTrainer",
    "fastrl.algos.bco_config": "BCOConfig",
    "fastrl.algos.dpo": "DPOTrainer",
    "fastrl.algos.dpo_config": "DPOConfig FDivergenceConstants FDivergenceType",
    "fastrl.algos.gkd": "GKDTrainer",
    "fastrl.algos.gkd_config": "GKDConfig",
    "fastrl.algos.grpo": "GRPOTrainer",
    "fastrl.algos.grpo_config": "GRPOConfig",
    "fastrl.algos.iterative_sft": "IterativeSFTTrainer IterativeSFTConfig",
    "fastrl.algos.kl_control": "AdaptiveKLController FixedKLController",
    "fastrl.algos.kto": "KTOTrainer",
    "fastrl.algos.kto_config": "KTOConfig",
    "fastrl.algos.nash_md": "NashMDTrainer",
    "fastrl.algos.nash_md_config": "NashMDConfig",
    "fastrl.algos.online_dpo": "OnlineDPOTrainer",
    "fastrl.algos.online_dpo_config": "OnlineDPOConfig",
    "fastrl.algos.orpo": "ORPOTrainer",
    "fastrl.algos.orpo_config": "ORPOConfig",
    "fastrl.algos.ppo": "PPOTrainer",
    "fastrl.algos.ppo_config": "PPOConfig",
    "fastrl.algos.ppo_train": "PPOv2Trainer",
    "fastrl.algos.ppo_train_config": "PPOTrainConfig PPOv2Config",
    "fastrl.algos.prm": "PRMTrainer",
    "fastrl.algos.prm_config": "PRMConfig",
    "fastrl.algos.reward": "RewardTrainer",
    "fastrl.algos.reward_config": "RewardConfig",
    "fastrl.algos.rloo": "RLOOTrainer",
    "fastrl.algos.rloo_config": "RLOOConfig",
    "fastrl.algos.sft": "SFTTrainer",
    "fastrl.algos.sft_config": "SFTConfig",
    "fastrl.algos.xpo": "XPOTrainer",
    "fastrl.algos.xpo_config": "XPOConfig",
    "fastrl.cli.main": "main",
    "fastrl.cli.rewarded": "RewardedArguments",
    "fastrl.compat.api": "set_api",
    "fastrl.compat.as_trl": "install_as_trl",
    "fastrl.compat.availability": """is_accelerate_greater_20_0 is_aiohttp_available
        is_bitsandbytes_available is_deepspeed_available is_diffusers_available
        is_fastapi_available is_harbor_available is_jmespath_available is_joblib_available
        is_liger_kernel_available is_llm_blender_available is_llmblender_available
        is_math_verify_available is_mergekit_available is_npu_available is_openreward_available
        is_peft_available is_pil_available is_pydantic_available is_requests_available
        is_rich_available is_sklearn_available is_torch_greater_2_0 is_torchvision_available
        is_transformers_greater_than is_unsloth_available is_uvicorn_available
        is_vllm_ascend_available is_vllm_available is_wandb_available is_weave_available
        is_xpu_available TRLExperimentalWarning OptionalDependencyNotAvailable
        LIGER_KERNEL_MIN_VERSION strtobool suppress_experimental_warning suppress_warning""",
    "fastrl.data.chat": """apply_chat_template maybe_apply_chat_template
        prepare_multimodal_messages prepare_multimodal_messages_vllm""",
    "fastrl.data.chat_setup": """ChatMlSpecialTokens SIMPLE_CHAT_TEMPLATE SIMPLE_SFT_CHAT_TEMPLATE
        clone_chat_template setup_chat_format""",
    "fastrl.data.cleaning": "identity remove_none_values strip_images_from_messages",
    "fastrl.data.collate": "DataCollatorForLanguageModeling",
    "fastrl.data.collate_chatml": "DataCollatorForChatML",
    "fastrl.data.collate_classic": "DPODataCollatorWithPadding RewardDataCollatorWithPadding",
    "fastrl.data.collate_legacy": "DataCollatorForCompletionOnlyLM",
    "fastrl.data.collate_preference": "DataCollatorForUnpairedPreference",
    "fastrl.data.constant_length": "ConstantLengthDataset",
    "fastrl.data.formats": """extract_prompt is_conversational is_conversational_from_value
        maybe_convert_to_chatml maybe_extract_prompt maybe_unpair_preference_dataset
        unpair_preference_dataset""",
    "fastrl.data.formatting": """conversations_formatting_function
        get_formatting_func_from_dataset instructions_formatting_function""",
    "fastrl.data.masks": "is_chat_template_stop_token_trained",
    "fastrl.data.packing": "pack_dataset pack_examples truncate_dataset",
    "fastrl.data.padding": """add_bos_token_if_needed add_eos_token_if_needed
        decode_and_strip_padding first_true_indices flush_left flush_right pad pad_to_length
        truncate_response truncate_right""",
    "fastrl.data.templates": """has_generation_markers is_chat_template_prefix_preserving
        supports_tool_calling""",
    "fastrl.data.training_template": "get_training_chat_template",
    "fastrl.models.actor_critic": "PolicyAndValue",
    "fastrl.models.adapters": "peft_module_casting_to_bf16 use_adapter",
    "fastrl.models.diffusion": "DDPOStableDiffusionPipeline DefaultDDPOStableDiffusionPipeline",
    "fastrl.models.diffusion_sampling": """DDPOPipelineOutput DDPOSchedulerOutput pipeline_step
        pipeline_step_with_grad scheduler_step""",
    "fastrl.models.dropout": "disable_dropout_in_model",
    "fastrl.models.noise": "neftune_post_forward_hook",
    "fastrl.models.query_responses": "forward get_reward",
    "fastrl.models.recomputing": """disable_gradient_checkpointing
        enable_gradient_checkpointing""",
    "fastrl.models.reference": "LAYER_PATTERNS create_reference_model",
    "fastrl.models.unwrapped": "unwrap_model_for_generation",
    "fastrl.models.value_head": """AutoModelForCausalLMWithValueHead
        AutoModelForSeq2SeqLMWithValueHead SUPPORTED_ARCHITECTURES ValueHead""",
    "fastrl.models.wrapper": "PreTrainedModelWrapper",
    "fastrl.ops.classic": """cap_exp clip_by_value entropy_from_logits get_exp_cap
        logprobs_from_logits masked_mean masked_var masked_whiten nanmax nanmin nanstd pad_to_size
        randn_tensor selective_log_softmax selective_log_softmax_and_entropy
        top_k_top_p_filtering whiten""",
    "fastrl.rewards.accuracy": """accuracy_reward get_cosine_scaled_reward
        reasoning_accuracy_reward""",
    "fastrl.rewards.aesthetic": "AestheticScorer aesthetic_scorer",
    "fastrl.rewards.format": "think_format_reward",
    "fastrl.rewards.judges": """AllTrueJudge BaseBinaryJudge BaseJudge BasePairwiseJudge
        BaseRankJudge DEFAULT_PAIRWISE_SYSTEM_PROMPT HfPairwiseJudge OpenAIPairwiseJudge
        PairRMJudge RandomPairwiseJudge RandomRankJudge""",
    "fastrl.rewards.length": "get_soft_overlong_punishment",
    "fastrl.rewards.repetition": "get_repetition_penalty_reward",
    "fastrl.rollout.batch_generation": "batch_generation generate",
    "fastrl.rollout.best_of_n": "BestOfNSampler",
    "fastrl.rollout.length_sampler": "LengthSampler",
    "fastrl.rollout.messages": "add_response_schema parse_response",
    "fastrl.rollout.mixture": "GeometricMixtureWrapper",
    "fastrl.rollout.respond": "respond_to_batch",
    "fastrl.rollout.text_environment": "StringStoppingCriteria TextEnvironment",
    "fastrl.rollout.text_history": "TextHistory",
    "fastrl.train.accuracy": "compute_accuracy",
    "fastrl.train.batch_dicts": """shuffle_sequence_dict split_pixel_values_by_grid
        split_tensor_dict unsplit_pixel_values_by_grid""",
    "fastrl.train.callbacks": """BEMACallback LogCompletionsCallback LogFileCallback
        RichProgressCallback SyncRefModelCallback WeaveCallback""",
    "fastrl.train.callbacks.merge_model": "MergeModelCallback",
    "fastrl.train.callbacks.win_rate": "WinRateCallback",
    "fastrl.train.card": "generate_model_card trl_sanitze_kwargs_for_tagging",
    "fastrl.train.device_cache": "PPODecorators empty_cache",
    "fastrl.train.merging": "MergeConfig merge_models upload_model_to_hf",
    "fastrl.train.model_config": """ModelConfig get_kbit_device_map get_peft_config
        get_quantization_config""",
    "fastrl.train.moments": "RunningMoments get_global_statistics",
    "fastrl.train.on_policy": "OnPolicyConfig OnlineTrainerState exact_div",
    "fastrl.train.parser": "TrlParser init_zero_verbose",
    "fastrl.train.profiling": "ProfilingContext profiling_context profiling_decorator",
    "fastrl.train.prompt_statistics": "PerPromptStatTracker",
    "fastrl.train.rendezvous": "ensure_master_addr_port",
    "fastrl.train.repeat": "RepeatSampler repeat_iterable_dataset",
    "fastrl.train.script_arguments": """DatasetConfig DatasetMixtureConfig ScriptArguments
        get_dataset""",
    "fastrl.train.script_arguments_classic": """DPOScriptArguments DpoScriptArguments
        RewardScriptArguments SFTScriptArguments SftScriptArguments""",
    "fastrl.train.seed": "set_seed",
    "fastrl.train.setup": "create_model_from_path",
    "fastrl.train.statistics": """WANDB_PADDING add_suffix average_torch_dicts convert_to_scalar
        flatten_dict stack_dicts stats_to_np""",
    "fastrl.train.tables": """get_comet_experiment_url log_table_to_comet_experiment
        print_prompt_completions_sample print_rich_table""",
}

# Public name -> "module" that defines it.
HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
