"""For each field of our own of every config: a changed value, and where that is to be seen."""

from __future__ import annotations

import torch

from tests.customisation import classic, diffusing, options, places
from tests.customisation.classic import Filled, Steps, Wrong
from tests.customisation.diffusing import Draws
from tests.customisation.probes import Probe, Seen
from tests.customisation.trainer_fields import TRAINERS

FIELDS: dict[str, dict[str, Probe]] = dict(TRAINERS)
SHIFTED = {"use_score_scaling": True}
STOPS = {"early_stopping": True, "target_kl": 1e-3, "ppo_epochs": 4}
FIELDS["PPOConfig"] = {
    "exp_name": Steps("mine", by="tracked"),
    "seed": Steps(5),
    "log_with": Seen(classic.log_with),
    "task_name": Steps("mine", by="tracked"),
    "model_name": Seen(places.read_by("examples/scripts/ppo.py")),
    "query_dataset": Seen(places.read_by("examples/scripts/ppo.py")),
    "reward_model": Seen(places.read_by("examples/scripts/ppo.py")),
    "remove_unused_columns": Steps(False, by="columns"),
    "tracker_kwargs": Steps({"wandb": {"entity": "me"}}, by="tracked"),
    "accelerator_kwargs": Steps(
        {"cpu": True, "step_scheduler_with_optimizer": False}, by="accelerator"
    ),
    "project_kwargs": Steps({"total_limit": 3}, by="accelerator"),
    "tracker_project_name": Steps("mine", by="tracked"),
    "push_to_hub_if_best_kwargs": Wrong({"private": True}, "push_to_hub_if_best_kwargs"),
    "steps": Steps(80, by="filled"),
    "learning_rate": Steps(1e-3),
    "adap_kl_ctrl": Steps(False),
    "init_kl_coef": Steps(0.5),
    "kl_penalty": Steps("abs"),
    "target": Steps(1e-6, {"kl_penalty": "mse"}),
    "horizon": Steps(100),
    "gamma": Steps(0.3),
    "lam": Steps(0.1),
    "cliprange": Steps(1e-3),
    "cliprange_value": Steps(1e-3),
    "vf_coef": Steps(1.0),
    "batch_size": Wrong(16, "16"),
    "forward_batch_size": Wrong(2, "forward_batch_size=2 contradicts"),
    "mini_batch_size": Steps(2),
    "gradient_accumulation_steps": Steps(2),
    "world_size": Filled(5),
    "ppo_epochs": Steps(3),
    "max_grad_norm": Steps(1e-3, by="weights"),
    "optimize_cuda_cache": Steps(True, by="emptied"),
    "optimize_device_cache": Steps(True, by="emptied"),
    "early_stopping": Steps(True, {"target_kl": 1e-3, "ppo_epochs": 4}),
    "target_kl": Steps(1e3, STOPS),
    "compare_steps": Seen(classic.compared_every),
    "ratio_threshold": Steps(1e-3),
    "use_score_scaling": Steps(True),
    "use_score_norm": Steps(True, SHIFTED),
    "score_clip": Steps(0.5),
    "whiten_rewards": Steps(True),
    "is_encoder_decoder": Filled(True),
    "is_peft_model": Filled(True),
    "backward_batch_size": Filled(3),
    "global_backward_batch_size": Filled(3),
    "global_batch_size": Filled(3),
    "position_ids": Steps(True, {"_left": True}),
    "global_statistics": Seen(classic.statistics_over),
}
FIELDS["IterativeSFTConfig"] = {
    "model_init_kwargs": Seen(classic.iterated_loading),
    "trust_remote_code": Seen(classic.iterated_loading),
    "max_length": Seen(classic.iterated_cut),
    "truncation_mode": Seen(classic.iterated_cut),
    "optimize_device_cache": Seen(classic.iterated_cache),
}
FIELDS["ModelConfig"] = {
    "model_name_or_path": Seen(options.of_model("other", "model")),
    "model_revision": Seen(options.of_model("v2", "revision")),
    "dtype": Seen(options.of_model("bfloat16", "dtype")),
    "attn_implementation": Seen(options.of_model("eager", "attn_implementation")),
    "use_peft": Seen(options.use_peft),
    "lora_r": Seen(options.adapter(4, "r")),
    "lora_alpha": Seen(options.adapter(8, "lora_alpha")),
    "lora_dropout": Seen(options.adapter(0.5, "lora_dropout")),
    "lora_target_modules": Seen(options.adapter(["all-linear"], "target_modules", "all-linear")),
    "lora_target_parameters": Seen(options.adapter(["w"], "target_parameters")),
    "lora_modules_to_save": Seen(options.adapter(["score"], "modules_to_save")),
    "lora_task_type": Seen(options.adapter("SEQ_CLS", "task_type")),
    "use_rslora": Seen(options.adapter(True, "use_rslora")),
    "use_dora": Seen(options.adapter(True, "use_dora")),
    "load_in_8bit": Seen(options.bits(True, "load_in_8bit")),
    "load_in_4bit": Seen(options.bits(True, "load_in_4bit")),
    "bnb_4bit_quant_type": Seen(options.bits("fp4", "bnb_4bit_quant_type", load_in_4bit=True)),
    "use_bnb_nested_quant": Seen(
        options.bits(True, "bnb_4bit_use_double_quant", load_in_4bit=True)
    ),
    "bnb_4bit_quant_storage": Seen(
        options.bits("bfloat16", "bnb_4bit_quant_storage", torch.bfloat16, load_in_4bit=True)
    ),
}
FIELDS["ScriptArguments"] = {
    "dataset_name": Seen(options.of_script("others", "loaded")),
    "dataset_config": Seen(options.of_script("small", "loaded")),
    "dataset_train_split": Seen(options.of_script("other", "train_dataset")),
    "dataset_test_split": Seen(options.of_script("other", "eval_dataset")),
    "dataset_streaming": Seen(options.of_script(True, "loaded")),
    "ignore_bias_buffers": Seen(options.bias_buffers),
}
FIELDS["DatasetConfig"] = {
    "path": Seen(options.of_source("others", 0)),
    "name": Seen(options.of_source("small", 1)),
    "data_dir": Seen(options.of_source("folder", 4)),
    "data_files": Seen(options.of_source("a.json", 5)),
    "split": Seen(options.of_source("test", 2)),
    "columns": Seen(options.columns),
    "fraction": Seen(options.fraction),
}
FIELDS["DatasetMixtureConfig"] = {
    "datasets": Seen(options.datasets_of_a_mixture),
    "streaming": Seen(options.streaming),
    "test_split_size": Seen(options.held_out),
}
FIELDS["DiffusionConfig"] = {
    "exp_name": Draws("mine", by="tracked"),
    "run_name": Draws("mine", by="facts"),
    "seed": Draws(5),
    "log_with": Seen(diffusing.tracker),
    "tracker_kwargs": Draws({"wandb": {"entity": "me"}}, by="tracked"),
    "accelerator_kwargs": Draws({"cpu": True, "step_scheduler_with_optimizer": False}, by="facts"),
    "project_kwargs": Draws({"total_limit": 3}, by="facts"),
    "tracker_project_name": Draws("mine", by="tracked"),
    "logdir": Draws("elsewhere", by="facts"),
    "num_epochs": Draws(2),
    "save_freq": Draws(2, {"num_epochs": 2}, by="checkpoints"),
    "num_checkpoint_limit": Draws(2, by="facts"),
    "mixed_precision": Draws("bf16"),
    "allow_tf32": Draws(False, by="facts"),
    "resume_from": Seen(diffusing.resumed),
    "sample_num_steps": Draws(3),
    "sample_eta": Draws(0.5),
    "sample_guidance_scale": Draws(2.0),
    "train_batch_size": Draws(2),
    "train_use_8bit_adam": Seen(diffusing.eight_bits),
    "train_learning_rate": Draws(1e-4),
    "train_adam_beta1": Draws(0.5, by="weights"),
    "train_adam_beta2": Draws(0.5, by="weights"),
    "train_adam_weight_decay": Draws(0.5, by="weights"),
    "train_adam_epsilon": Draws(1e-2),
    "train_gradient_accumulation_steps": Draws(2),
    "train_max_grad_norm": Draws(1e-7, by="weights"),
    "negative_prompts": Draws("dark"),
    "push_to_hub": Seen(diffusing.pushed),
}
FIELDS["DDPOConfig"] = {
    "sample_batch_size": Draws(3),
    "sample_num_batches_per_epoch": Draws(3),
    "train_num_inner_epochs": Draws(2),
    "train_cfg": Draws(False),
    "train_adv_clip_max": Draws(0.1),
    "train_clip_range": Draws(0.5),
    "train_timestep_fraction": Draws(0.5),
    "per_prompt_stat_tracking": Draws(True),
    "per_prompt_stat_tracking_buffer_size": Draws(
        1, {**diffusing.TRACKED, "per_prompt_stat_tracking_min_count": 1}, by="facts"
    ),
    "per_prompt_stat_tracking_min_count": Draws(1, diffusing.TRACKED),
    "async_reward_computation": Draws(True, by="facts"),
    "max_workers": Draws(3, {"async_reward_computation": True}, by="facts"),
    "train_timesteps_per_pass": Draws(2, by="facts"),
}
FIELDS["AlignPropConfig"] = {
    "train_learning_rate": Draws(1e-4, by="weights", kind="AlignProp"),
    "negative_prompts": Draws("dark", kind="AlignProp"),
    "log_image_freq": Draws(2, by="shown", kind="AlignProp"),
    "truncated_backprop_rand": Draws(
        False,
        {"truncated_backprop_timestep": 1, "truncated_rand_backprop_minmax": (0, 0)},
        by="weights",
        kind="AlignProp",
    ),
    "truncated_backprop_timestep": Draws(
        0,
        {"truncated_backprop_rand": False, "truncated_backprop_timestep": 1},
        by="weights",
        kind="AlignProp",
    ),
    "truncated_rand_backprop_minmax": Draws((0, 0), by="weights", kind="AlignProp"),
}
