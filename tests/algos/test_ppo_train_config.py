"""Settings of PPO's `train()` form: one name for both forms, sizes of batches, what is refused."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from typing import Any

import pytest

import fastrl
from fastrl import PPOConfig, PPOTrainConfig, PPOv2Config

# Names and defaults of TRL 1.9's PPOConfig beyond TrainingArguments.
TRL = {
    "learning_rate": 3e-6,
    "gradient_checkpointing": True,
    "dataset_num_proc": None,
    "num_mini_batches": 1,
    "total_episodes": None,
    "local_rollout_forward_batch_size": 64,
    "num_sample_generations": 10,
    "response_length": 53,
    "stop_token": None,
    "stop_token_id": None,
    "temperature": 0.7,
    "missing_eos_penalty": None,
    "sft_model_path": "EleutherAI/pythia-160m",
    "push_to_hub": False,
    "reward_model_path": "EleutherAI/pythia-160m",
    "model_adapter_name": None,
    "ref_adapter_name": None,
    "num_ppo_epochs": 4,
    "whiten_rewards": False,
    "kl_coef": 0.05,
    "kl_estimator": "k1",
    "cliprange": 0.2,
    "vf_coef": 0.1,
    "cliprange_value": 0.2,
    "gamma": 1.0,
    "lam": 0.95,
    "ds3_gather_for_generation": True,
}


def make(**given: Any) -> PPOTrainConfig:
    return PPOTrainConfig("out", **{"use_cpu": True, "report_to": "none", **given})


def test_defaults_are_trls() -> None:
    args = make()
    assert {name: getattr(args, name) for name in TRL} == TRL


def test_sizes_of_batches() -> None:
    args = make(per_device_train_batch_size=3, gradient_accumulation_steps=4, num_mini_batches=5)
    assert args.micro_batch_size == 3
    assert args.local_mini_batch_size == args.mini_batch_size == 12
    assert args.local_batch_size == args.batch_size == 60


@pytest.mark.parametrize(
    "given",
    [
        {"output_dir": "out"},
        {"num_ppo_epochs": 2},
        {"total_episodes": 8},
        {"response_length": 8},
        {"kl_coef": 0.1},
        {"per_device_train_batch_size": 2, "learning_rate": 1e-5, "gamma": 0.9},
    ],
)
def test_ppo_config_with_a_field_of_the_train_form(given: dict[str, Any]) -> None:
    args = PPOConfig(**given, use_cpu=True)
    assert isinstance(args, PPOTrainConfig)
    assert all(getattr(args, name) == value for name, value in given.items())


def test_ppo_config_otherwise_is_the_classic_one() -> None:
    config = PPOConfig(learning_rate=1e-5, batch_size=4, gamma=0.9)
    assert type(config) is PPOConfig
    assert (config.batch_size, config.ppo_epochs) == (4, 4)
    assert copy.deepcopy(config) == config
    assert dataclasses.replace(config, batch_size=8).batch_size == 8
    assert "batch_size" in inspect.signature(PPOConfig).parameters


def test_fields_of_both_forms_are_listed() -> None:
    with pytest.raises(TypeError, match=r"step\(\) form \(batch_size, init_kl_coef\) and of the"):
        PPOConfig(output_dir="out", kl_coef=0.1, init_kl_coef=0.2, batch_size=8)


def test_old_names() -> None:
    assert PPOv2Config is PPOTrainConfig
    assert {"PPOTrainConfig", "PPOv2Config", "PPOv2Trainer"} <= set(fastrl.__all__)
    with pytest.warns(FutureWarning, match="evaluation_strategy= is eval_strategy="):
        assert make(evaluation_strategy="steps").eval_strategy == "steps"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kl_estimator": "k2"}, "kl_estimator='k2' is none of k1, k3"),
        ({"stop_token": "."}, "stop_token='.': give 'eos' or None"),
        ({"stop_token": "eos", "stop_token_id": 3}, "both say where a response ends"),
        ({"temperature": 0.0}, "temperature=0.0: it must be finite and above 0"),
        ({"missing_eos_penalty": -1.0}, "missing_eos_penalty=-1.0: it must be"),
        ({"lam": 1.5}, r"lam=1.5: it must be in \[0, 1\]"),
        ({"cliprange": float("nan")}, "cliprange=nan"),
        ({"vf_coef": "0.1"}, "vf_coef='0.1'"),
        ({"response_length": 0}, "response_length=0: a whole number from 1"),
        ({"num_ppo_epochs": True}, "num_ppo_epochs=True: a whole number"),
        ({"num_mini_batches": 1.5}, "num_mini_batches=1.5"),
        ({"total_episodes": 8, "max_steps": 2}, "both say how long to train"),
        ({"whiten_rewards": True, "per_device_train_batch_size": 4}, "needs 8 rows or more"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size=True has no part in PPO"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha=5.0 has no part"),
        ({"train_sampling_strategy": "group_by_length"}, "prompts are drawn at random"),
    ],
)
def test_refused_at_construction(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**given)


@pytest.mark.parametrize("name", ["batch_size", "num_total_batches", "respons_length"])
def test_what_is_no_field(name: str) -> None:
    with pytest.raises(TypeError, match=f"has no field '{name}'"):
        make(**{name: 8})
