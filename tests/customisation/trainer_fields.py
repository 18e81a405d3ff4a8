"""Fields of trainers built on `transformers.Trainer`: a changed value, and where it shows."""

from __future__ import annotations

from collections.abc import Callable

from tests.algos.offline_parity import making
from tests.customisation import places, runs, vllm_places
from tests.customisation.probes import Changes, Probe, Refused, Same, Seen

CUT = {"max_length": 40}
MATCHED = {"_matched": True}
MOE = {"_model": "qwen2_moe"}
OFF = {"num_iterations": 3, "max_steps": 3}  # the ratio to the policy that sampled leaves 1
FOLLOWS = {"sync_ref_model": True, "ref_model_sync_steps": 1}
PULLED = {"beta": 0.5}
SHOWN = {"log_completions": True}
ADAPTS = {"use_adaptive_entropy": True, "entropy_target": 10.0, "entropy_coef": 0.1}
ENGINE = {"_drawn": True, "_engine": True}
BY_NAME = {"_by_name": lambda: str(runs.folder() / "policy")}
TWO = {"_rewards": "several"}
VESPO = {"loss_type": "vespo", **OFF, "learning_rate": 1e-4}
SAPO = {"loss_type": "sapo", **OFF}
SPEAKS = {
    "_rows": "completion_chat",
    "_template": "{% if loud is defined %}!!{% endif %}" + making.CHATML,
}


def other(name: str) -> Callable[[], str]:
    return lambda: str(runs.folder() / name)


TRAINERS: dict[str, dict[str, Probe]] = {
    "BaseConfig": {
        "logging_steps": Changes("sft", 2),
        "gradient_checkpointing": Changes("sft", True, by="facts"),
        "bf16": Changes("sft", True),
        "logging_nan_inf_filter": Seen(places.nan_filter),
    },
    "OfflineConfig": {
        "model_init_kwargs": Changes("sft", {"dtype": "bfloat16"}, BY_NAME, by="facts"),
        "trust_remote_code": Seen(places.loading),
        "dataset_num_proc": Seen(places.processes),
        "max_length": Changes("sft", 40),
        "pad_to_multiple_of": Changes("sft", 50, by="batch"),
        "activation_offloading": Seen(places.offloading),
        "pad_token": Changes("sft", "<unk>", by="facts"),
    },
    "PreferenceConfig": {
        "learning_rate": Changes("dpo", 1e-3),
        "router_aux_loss_coef": Changes("dpo", 5.0, MOE),
        "disable_dropout": Changes("dpo", False, {"_dropout": 0.25}, by="facts"),
        "precompute_ref_log_probs": Changes("dpo", True, by="facts"),
        "precompute_ref_batch_size": Seen(places.precomputing),
        "beta": Changes("dpo", 0.5),
        "sync_ref_model": Changes("dpo", True, {"ref_model_sync_steps": 1}),
        "ref_model_mixup_alpha": Changes("dpo", 0.1, FOLLOWS),
        "ref_model_sync_steps": Changes("dpo", 1, {"sync_ref_model": True}),
    },
    "SFTConfig": {
        "learning_rate": Changes("sft", 1e-3),
        "router_aux_loss_coef": Changes("sft", 5.0, MOE),
        "chat_template_path": Changes("sft", other("other.jinja"), by="facts"),
        "dataset_text_field": Refused("sft", "nothing", "columns", {"_rows": "text"}),
        "dataset_kwargs": Seen(places.unprepared),
        "eos_token": Changes("sft", "<unk>"),
        "truncation_mode": Changes("sft", "keep_end", CUT),
        "shuffle_dataset": Changes("sft", True, {"train_sampling_strategy": "sequential"}),
        "packing": Changes("sft", True, {"max_length": 128}, by="batch"),
        "packing_strategy": Changes("sft", "wrapped", {"max_length": 40, "packing": True}),
        "padding_free": Changes("sft", True, by="batch"),
        "eval_packing": Changes("sft", False, {"max_length": 40, "packing": True}),
        "completion_only_loss": Changes("sft", False),
        "assistant_only_loss": Changes(
            "sft", True, {"_rows": "messages", "_template": making.CHATML_TRAINING}
        ),
        "loss_type": Changes("sft", "dft"),
    },
    "DPOConfig": {
        "truncation_mode": Changes("dpo", "keep_end", {"max_length": 30}),
        "padding_free": Same("dpo", True),
        "loss_type": Changes("dpo", "hinge"),
        "loss_weights": Changes("dpo", [2.0]),
        "ld_alpha": Changes("dpo", 0.5),
        "f_divergence_type": Changes("dpo", "js_divergence"),
        "f_alpha_divergence_coef": Changes("dpo", 0.9, {"f_divergence_type": "alpha_divergence"}),
        "label_smoothing": Changes("dpo", 0.2),
        "use_weighting": Changes("dpo", True),
        "discopop_tau": Changes("dpo", 0.5, {"loss_type": "discopop"}),
    },
    "KTOConfig": {
        "train_sampling_strategy": Changes("kto", "random"),
        "loss_type": Changes("kto", "apo_zero_unpaired"),
        "desirable_weight": Changes("kto", 2.0),
        "undesirable_weight": Changes("kto", 2.0),
    },
    "ReferenceFreeConfig": {
        "learning_rate": Changes("orpo", 1e-3),
        "max_completion_length": Changes("orpo", 10),
        "max_prompt_length": Changes("orpo", 6, CUT),
        "truncation_mode": Changes("orpo", "keep_start", {**CUT, "max_prompt_length": 6}),
        "disable_dropout": Changes("orpo", False, {"_dropout": 0.25}, by="facts"),
        "padding_value": Seen(places.padding),
        "generate_during_eval": Refused("orpo", True, "LogCompletionsCallback"),
        "is_encoder_decoder": Refused("orpo", True, "decoder-only"),
    },
    "ORPOConfig": {"beta": Changes("orpo", 0.5)},
    "CPOConfig": {
        "beta": Changes("cpo", 0.5),
        "label_smoothing": Changes("cpo", 0.2),
        "loss_type": Changes("cpo", "hinge"),
        "cpo_alpha": Changes("cpo", 0.5),
        "simpo_gamma": Changes("cpo", 1.5, {"loss_type": "simpo"}),
        "alpha": Changes("cpo", 0.5, {"loss_type": "alphapo"}),
    },
    "BCOConfig": {
        "learning_rate": Changes("bco", 1e-3),
        "train_sampling_strategy": Changes("bco", "random"),
        "max_prompt_length": Changes("bco", 6, CUT),
        "truncation_mode": Changes("bco", "keep_start", {**CUT, "max_prompt_length": 6}),
        "prompt_sample_size": Changes("bco", 2, MATCHED),
        "min_density_ratio": Changes("bco", 3.0, MATCHED),
        "max_density_ratio": Changes("bco", 0.6, MATCHED),
    },
    "PRMConfig": {
        "learning_rate": Changes("prm", 1e-3),
        "max_prompt_length": Changes("prm", 4),
        "max_completion_length": Changes("prm", 20),
        "disable_dropout": Changes("prm", False, {"_dropout": 0.25}, by="facts"),
        "step_separator": Changes("prm", "|"),
        "train_on_last_step_only": Changes("prm", True),
    },
    "RewardConfig": {
        "learning_rate": Changes("reward", 1e-3),
        "chat_template_path": Changes("reward", other("other.jinja"), by="facts"),
        "disable_dropout": Changes("reward", False, {"_dropout": 0.25}, by="facts"),
        "eos_token": Changes("reward", "<unk>"),
        "center_rewards_coefficient": Changes("reward", 1.0),
    },
    "VLLMConfig": {
        "use_vllm": Seen(vllm_places.absent_vllm),
        "vllm_mode": Seen(vllm_places.vllm_mode),
        "vllm_model_impl": Seen(vllm_places.vllm("model_impl", "transformers")),
        "vllm_enable_sleep_mode": Seen(vllm_places.vllm("enable_sleep_mode", True)),
        "vllm_structured_outputs_regex": Seen(vllm_places.vllm_regex),
        "vllm_server_base_url": Seen(vllm_places.vllm_server("http://there:1234")),
        "vllm_server_host": Seen(vllm_places.vllm_server("there")),
        "vllm_server_port": Seen(vllm_places.vllm_server(1234)),
        "vllm_server_timeout": Seen(vllm_places.vllm_server(7.5)),
        "vllm_group_port": Seen(vllm_places.vllm_server(4321)),
        "vllm_gpu_memory_utilization": Seen(vllm_places.vllm("gpu_memory_utilization", 0.6)),
        "vllm_max_model_length": Seen(vllm_places.vllm("max_model_len", 77)),
        "vllm_tensor_parallel_size": Seen(vllm_places.vllm_parallel),
    },
    "SamplingConfig": {
        "max_completion_length": Changes("grpo", 3),
        "temperature": Changes("grpo", 0.3),
        "top_p": Changes("grpo", 0.2),
        "top_k": Changes("grpo", 2),
        "min_p": Changes("grpo", 0.95),
        "repetition_penalty": Changes("grpo", 5.0),
        "generation_kwargs": Changes("grpo", {"top_k": 2}),
        "chat_template_kwargs": Changes("grpo", {"loud": True}, SPEAKS, by="batch"),
        "cache_implementation": Same("grpo", "static"),
        "ds3_gather_for_generation": Same("grpo", False),
        "use_transformers_continuous_batching": Same("grpo", True),
        "transformers_continuous_batching_config": Refused("grpo", {"a": 1}, "not used"),
        "use_transformers_paged": Changes("grpo", True, by="said"),
    },
    "CompletionLogConfig": {
        "log_completions": Changes("grpo", True, by="files"),
        "log_multimodal": Same("grpo", False, SHOWN),
        "num_completions_to_print": Changes("grpo", 1, SHOWN, by="said"),
        "log_unique_prompts": Changes("grpo", True, SHOWN, by="said"),
    },
    "OnlineConfig": {
        "learning_rate": Changes("grpo", 1e-3, by="weights"),
        "remove_unused_columns": Changes("grpo", True),
        "model_init_kwargs": Changes("grpo", {"dtype": "bfloat16"}, BY_NAME, by="facts"),
        "trust_remote_code": Seen(places.loading_online),
        "router_aux_loss_coef": Changes("grpo", 5.0, MOE),
        "disable_dropout": Changes("grpo", True, {"_dropout": 0.25}, by="facts"),
        "num_generations": Changes("grpo", 2),
        "num_generations_eval": Changes("grpo", 2),
        "shuffle_dataset": Changes("grpo", False),
        "pad_to_multiple_of": Changes("grpo", 16, by="batch"),
        "generation_batch_size": Changes("grpo", 8, {"steps_per_generation": None}),
        "steps_per_generation": Changes("grpo", 2),
        "beta": Changes("grpo", 0.5),
        "num_iterations": Changes("grpo", 2),
        "epsilon": Changes("grpo", 1e-4, OFF),
        "epsilon_high": Changes("grpo", 1e-4, OFF),
        "reward_weights": Changes("grpo", [5.0]),
        "mask_truncated_completions": Changes("grpo", True, by="weights"),
        "reward_timeout": Seen(places.timeout),
        "dynamic_sampling": Changes("grpo", True),
        "dynamic_sampling_rounds": Changes(
            "grpo", 1, {"dynamic_sampling": True, "_rewards": "dull"}
        ),
        "balance_ranks": Refused("grpo", True, "balance_ranks", {"top_entropy_quantile": 0.5}),
        "sync_ref_model": Changes("grpo", True, {**PULLED, "ref_model_sync_steps": 1}),
        "ref_model_mixup_alpha": Changes("grpo", 0.1, {**PULLED, **FOLLOWS}),
        "ref_model_sync_steps": Changes("grpo", 1, {**PULLED, "sync_ref_model": True}),
    },
    "EntropyConfig": {
        "top_entropy_quantile": Changes("grpo", 0.3, by="weights"),
        "entropy_coef": Changes("grpo", 0.5, by="weights"),
        "use_adaptive_entropy": Changes("grpo", True, {"entropy_coef": 0.1}),
        "entropy_coef_min": Changes("grpo", 0.0999, {**ADAPTS, "entropy_target": 0.0}),
        "entropy_coef_max": Changes("grpo", 0.1001, ADAPTS),
        "entropy_coef_delta": Changes("grpo", 0.5, ADAPTS),
        "entropy_target": Changes("grpo", 0.0, ADAPTS),
    },
    "CorrectionConfig": {
        "vllm_importance_sampling_correction": Changes("grpo", False, ENGINE),
        "vllm_importance_sampling_mode": Changes("grpo", "token_mask", ENGINE),
        "vllm_importance_sampling_clip_max": Changes("grpo", 1.01, ENGINE),
        "vllm_importance_sampling_clip_min": Changes("grpo", 0.99, ENGINE),
        "vllm_importance_sampling_cap": Changes("grpo", 1.01, ENGINE),
        "off_policy_mask_threshold": Changes("grpo", 1e-6, {**ENGINE, **OFF}, by="weights"),
    },
    "GRPOConfig": {
        "cast_lm_head_to_fp32": Changes("grpo", True, {"_model": "llama", "_dtype": "bfloat16"}),
        "loss_type": Changes("grpo", "sapo"),
        "importance_sampling_level": Changes("grpo", "sequence", OFF),
        "scale_rewards": Changes("grpo", "none", by="weights"),
        "multi_objective_aggregation": Changes("grpo", "normalize_then_sum", TWO, by="weights"),
        "delta": Changes("grpo", 1.0001, OFF, by="weights"),
        "use_bias_correction_kl": Changes("grpo", False, {**PULLED, **OFF}, by="weights"),
        "sapo_temperature_neg": Changes("grpo", 5.0, SAPO, by="weights"),
        "sapo_temperature_pos": Changes("grpo", 5.0, SAPO, by="weights"),
        "vespo_k_pos": Changes("grpo", 4.0, VESPO, by="weights"),
        "vespo_lambda_pos": Changes("grpo", 1.0, VESPO, by="weights"),
        "vespo_k_neg": Changes("grpo", 5.0, VESPO, by="weights"),
        "vespo_lambda_neg": Changes("grpo", 1.0, VESPO, by="weights"),
        "max_tool_calling_iterations": Seen(places.tool_rounds),
        "log_completions_hub_repo": Seen(places.completions_repository),
    },
    "RLOOConfig": {
        "num_generations": Changes("rloo", 2),
        "beta": Changes("rloo", 0.5),
        "normalize_advantages": Changes("rloo", True, by="weights"),
        "reward_clip_range": Changes("rloo", [0.0, 1.0], by="weights"),
    },
    "GKDConfig": {
        "temperature": Changes("gkd", 0.3, {"lmbda": 1.0}),
        "lmbda": Changes("gkd", 1.0),
        "beta": Changes("gkd", 0.1),
        "max_new_tokens": Changes("gkd", 3, {"lmbda": 1.0}),
        "teacher_model_name_or_path": Changes("gkd", other("policy")),
        "teacher_model_init_kwargs": Seen(
            places.teacher_loading({"dtype": "bfloat16"}, "dtype", "gkd")
        ),
        "disable_dropout": Changes("gkd", False, {"_dropout": 0.25}, by="facts"),
        "seq_kd": Changes("gkd", True),
    },
    "DistillationConfig": {
        "teacher_model_name_or_path": Changes("distillation", other("policy")),
        "teacher_model_revision": Seen(places.teacher_loading("v2", "revision")),
        "teacher_model_init_kwargs": Seen(places.teacher_loading({"dtype": "bfloat16"}, "dtype")),
        "temperature": Changes("distillation", 0.3),
        "beta": Changes("distillation", 0.5),
        "max_tool_calling_iterations": Refused(
            "distillation", 0, "max_tool_calling_iterations must be 1 or more"
        ),
    },
    "NashMDConfig": {"mixture_coef": Changes("nash_md", [0.9])},
    "XPOConfig": {"alpha": Changes("xpo", [0.5], by="weights")},
    "OnlineDPOConfig": {
        "learning_rate": Changes("online_dpo", 1e-3),
        "reward_model_path": Changes("online_dpo", other("judge")),
        "max_new_tokens": Changes("online_dpo", 3),
        "max_length": Changes("online_dpo", 16),
        "temperature": Changes("online_dpo", 0.3),
        "missing_eos_penalty": Changes("online_dpo", 1.0),
        "beta": Changes("online_dpo", [0.5]),
        "loss_type": Changes("online_dpo", "ipo"),
        "disable_dropout": Changes("online_dpo", False, {"_dropout": 0.25}, by="facts"),
        "vllm_gpu_memory_utilization": Seen(
            vllm_places.vllm("gpu_memory_utilization", 0.6, "online")
        ),
        "vllm_max_model_length": Seen(vllm_places.vllm("max_model_len", 77, "online")),
        "router_aux_loss_coef": Changes("online_dpo", 5.0, MOE),
    },
    "PPOTrainConfig": {
        "logging_steps": Changes("ppo_train", 2),
        "learning_rate": Changes("ppo_train", 1e-3),
        "max_grad_norm": Changes("ppo_train", 1e-3, by="weights"),
        "remove_unused_columns": Seen(places.kept_columns),
        "dataset_num_proc": Seen(places.processes_of_prompts),
        "num_mini_batches": Changes("ppo_train", 2),
        "total_episodes": Changes("ppo_train", 4, {"max_steps": -1, "num_train_epochs": 0.5}),
        "local_rollout_forward_batch_size": Seen(places.rows_decoded_together),
        "num_sample_generations": Changes("ppo_train", 1, by="files"),
        "response_length": Changes("ppo_train", 3),
        "stop_token": Changes("ppo_train", "eos"),
        "stop_token_id": Changes("ppo_train", 40),
        "temperature": Changes("ppo_train", 0.2),
        "missing_eos_penalty": Changes("ppo_train", 1.0),
        "sft_model_path": Seen(places.read_by("examples/scripts/ppo_train.py")),
        "reward_model_path": Seen(places.read_by("examples/scripts/ppo_train.py")),
        "exp_name": Changes("ppo_train", "mine", by="facts"),
        "model_adapter_name": Refused("ppo_train", "mine", "model_adapter_name"),
        "ref_adapter_name": Refused("ppo_train", "mine", "ref_adapter_name"),
        "num_ppo_epochs": Changes("ppo_train", 1),
        "whiten_rewards": Changes(
            "ppo_train", True, {"per_device_train_batch_size": 8}, by="weights"
        ),
        "kl_coef": Changes("ppo_train", 0.5),
        "kl_estimator": Changes("ppo_train", "k3"),
        "cliprange": Changes("ppo_train", 1e-4),
        "vf_coef": Changes("ppo_train", 1.0, by="weights"),
        "cliprange_value": Changes("ppo_train", 1e-4),
        "gamma": Changes("ppo_train", 0.3, by="weights"),
        "lam": Changes("ppo_train", 0.1, by="weights"),
        "ds3_gather_for_generation": Same("ppo_train", False),
    },
}
