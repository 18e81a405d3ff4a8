"""GRPOConfig and RLOOConfig as they were called since TRL 0.9 and 0.14."""

from __future__ import annotations

from fastrl.legacy.binding import LegacyInit
from fastrl.legacy.changes import Ignored, Refused, Renamed, Table
from fastrl.legacy.training_arguments import TRAINING_ARGUMENTS, defaults_of

_ORDER = (
    "model",
    "reward_funcs",
    "args",
    "train_dataset",
    "eval_dataset",
    "processing_class",
    "reward_processing_classes",
    "callbacks",
    "optimizers",
    "peft_config",
)
_REWARDS = "pass reward_funcs= to the trainer"
_EOS_PENALTY = "write a reward function that subtracts it where completion_ids lack the EOS token"
_NO_VALUES = "RLOO has no value model"
_BY_TRAINER = "sampled completions are shown by log_completions=True"


_BOTH: Table = {
    **TRAINING_ARGUMENTS,
    "max_prompt_length": Ignored("prompts are never cut; leave long ones out of the dataset"),
    "vllm_device": Ignored("vLLM shares the training devices; vllm_mode='server' has its own"),
    "vllm_dtype": Ignored("vLLM computes in the dtype of the model"),
    "vllm_enable_prefix_caching": Ignored("vLLM decides by itself"),
    "vllm_guided_decoding_regex": Renamed("vllm_structured_outputs_regex"),
    "vllm_max_model_len": Renamed("vllm_max_model_length"),
    "wandb_log_unique_prompts": Renamed("log_unique_prompts"),
}

GRPO = LegacyInit(
    order=(*_ORDER, "tools", "rollout_func", "environment_factory"),
    changes={"tokenizer": Renamed("processing_class")},
    first="0.11",
)

GRPO_FIELDS: Table = {
    **_BOTH,
    "use_liger_loss": Ignored("the loss is always computed without keeping the logits"),
}


RLOO = LegacyInit(
    order=(
        "config",
        "tokenizer",
        "policy",
        "ref_policy",
        "reward_model",
        "train_dataset",
        "data_collator",
        "eval_dataset",
        "optimizers",
        "callbacks",
    ),
    changes={
        "config": Renamed("args"),
        "data_collator": Refused("rows are taken as they are; prepare them in the dataset"),
        "policy": Renamed("model"),
        "ref_policy": Ignored("the reference is the model's start"),
        "reward_model": Renamed("reward_funcs"),
        "tokenizer": Renamed("processing_class"),
    },
    first="0.11",
)

RLOO_DEFAULTS = defaults_of(
    logging_steps=1,  # its loop logged every update, whatever was set
    max_completion_length=53,
    num_iterations=4,
    temperature=0.7,
)

RLOO_FIELDS: Table = {
    **_BOTH,
    "base_model": Refused("pass model= to the trainer"),
    "cliprange": Renamed("epsilon"),
    "cliprange_value": Refused(_NO_VALUES, (0.2,)),
    "dataset_num_proc": Ignored("prompts are prepared as they are sampled from"),
    "exp_name": Renamed("run_name"),
    "gamma": Refused(_NO_VALUES, (1, 1.0)),
    "kl_coef": Renamed("beta"),
    "lam": Refused(_NO_VALUES, (0.95,)),
    "local_rollout_forward_batch_size": Ignored("rows are batched by their number of tokens"),
    "missing_eos_penalty": Refused(_EOS_PENALTY),
    "non_eos_penalty": Refused(_EOS_PENALTY),
    "normalize_advantage": Renamed("normalize_advantages"),
    "normalize_reward": Refused("write normalize_advantages=True"),
    "num_mini_batches": Refused("write steps_per_generation=", (1,)),
    "num_ppo_epochs": Renamed("num_iterations"),
    "num_sample_generations": Ignored(_BY_TRAINER),
    "penalty_reward_value": Refused(_EOS_PENALTY, (-1,)),
    "response_length": Renamed("max_completion_length"),
    "reward_model_path": Refused(_REWARDS),
    "rloo_k": Renamed("num_generations"),
    "sanity_check": Refused("give the rows to train on: dataset.select(range(1000))"),
    "sft_model_path": Refused("pass model= to the trainer"),
    "stop_token": Refused("write generation_kwargs={'eos_token_id': ...}", ("eos",)),
    "stop_token_id": Refused("write generation_kwargs={'eos_token_id': ...}"),
    "token_level_kl": Refused("the KL of a whole completion is subtracted from its reward"),
    "total_episodes": Refused("write max_steps= or num_train_epochs="),
    "vf_coef": Refused(_NO_VALUES, (0.1,)),
    "whiten_rewards": Refused("write normalize_advantages=True"),
}
