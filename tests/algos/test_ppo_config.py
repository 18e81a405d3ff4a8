"""PPOConfig: defaults of TRL 0.7.11, batch sizes, old spellings, errors."""

import dataclasses
import importlib.util

import numpy as np
import pytest

from fastrl import PPOConfig


def test_batch_of_one_resolves_the_mini_batch():
    config = PPOConfig(batch_size=1, learning_rate=1e-5)
    assert (config.mini_batch_size, config.backward_batch_size) == (1, 1)


@pytest.mark.parametrize(
    ("given", "mini"),
    [
        ({}, 128),
        ({"batch_size": 256}, 128),
        ({"batch_size": 32}, 32),
        ({"batch_size": 32, "gradient_accumulation_steps": 4}, 8),
    ],
)
def test_unset_mini_batch_size(given, mini):
    assert PPOConfig(**given).mini_batch_size == mini


def test_an_explicit_mini_batch_of_128_is_not_the_default():
    with pytest.raises(ValueError, match=r"batch_size=16 is no multiple.*128 \* 1"):
        PPOConfig(batch_size=16, mini_batch_size=128)


def test_derived_sizes():
    config = PPOConfig(batch_size=48, mini_batch_size=4, gradient_accumulation_steps=3, steps=100)
    assert (config.backward_batch_size, config.total_ppo_epochs) == (12, 3)


def test_unknown_field_names_the_closest():
    with pytest.raises(TypeError, match="no field 'learning_rte'; did you mean 'learning_rate'"):
        PPOConfig(learning_rte=1e-5)


@pytest.mark.parametrize("error", [ValueError, AssertionError])
def test_kl_penalty_outside_its_list(error):
    with pytest.raises(error, match="kl_penalty='kll'"):
        PPOConfig(kl_penalty="kll")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("mini_batch_size", -1),
        ("ppo_epochs", 0),
        ("batch_size", 2.5),
        ("horizon", 0),
        ("cliprange", -0.1),
        ("score_clip", 0.0),
        ("max_grad_norm", -1.0),
        ("batch_size", True),
        ("compare_steps", 0.5),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", None),
        ("learning_rate", "1e-5"),  # what YAML makes of 1e-5
        ("learning_rate", None),
        ("learning_rate", float("inf")),
        ("target", 0),
        ("gamma", 1.5),
        ("lam", float("nan")),
        ("vf_coef", -1),
        ("ratio_threshold", float("nan")),
        ("target_kl", None),
        ("score_clip", "0.5"),
        ("whiten_rewards", "False"),
        ("adap_kl_ctrl", None),
        ("tracker_kwargs", None),
    ],
)
def test_a_value_out_of_range_names_the_field(field, value):
    with pytest.raises(ValueError, match=rf"^{field}="):
        PPOConfig(**{field: value})


def test_optimize_cuda_cache_is_honoured():
    with pytest.warns(FutureWarning, match="optimize_device_cache"):
        assert PPOConfig(optimize_cuda_cache=True).optimize_device_cache is True


def test_forward_batch_size_is_mini_batch_size():
    with pytest.warns(FutureWarning, match="mini_batch_size"):
        assert PPOConfig(batch_size=8, forward_batch_size=4).mini_batch_size == 4


@pytest.mark.parametrize("mini", [2, 128])
def test_a_forward_batch_size_that_contradicts_is_refused(mini):
    with pytest.raises(ValueError, match=f"=4 contradicts mini_batch_size={mini}"):
        PPOConfig(batch_size=8, forward_batch_size=4, mini_batch_size=mini)


def test_switches_that_turn_things_off_are_kept():
    numbers = {"cliprange": np.inf, "ratio_threshold": np.inf, "horizon": np.inf, "target_kl": -1}
    config = PPOConfig(batch_size=np.int64(4), learning_rate=np.float32(1e-3), **numbers)
    assert config.mini_batch_size == 4
    assert dataclasses.replace(config, ppo_epochs=1).ratio_threshold == np.inf


def test_wandb_without_wandb():
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    with pytest.raises(ImportError, match="pip install wandb"):
        PPOConfig(log_with="wandb")


def test_to_dict_is_flat_and_drops_empty_dicts():
    flat = PPOConfig(tracker_kwargs={"wandb": {"entity": "me"}}).to_dict()
    assert flat["tracker_kwargs/wandb/entity"] == "me"
    assert "project_kwargs" not in flat
    assert flat["batch_size"] == 128


def test_fields_and_defaults_of_trl_0_7_11():
    expected = {
        "seed": 0,
        "log_with": None,
        "task_name": None,
        "model_name": "gpt2",
        "query_dataset": "imdb",
        "reward_model": "sentiment-analysis:lvwerra/distilbert-imdb",
        "remove_unused_columns": True,
        "tracker_kwargs": {},
        "accelerator_kwargs": {},
        "project_kwargs": {},
        "tracker_project_name": "trl",
        "push_to_hub_if_best_kwargs": {},
        "steps": 20000,
        "learning_rate": 1.41e-5,
        "adap_kl_ctrl": True,
        "init_kl_coef": 0.2,
        "kl_penalty": "kl",
        "target": 6,
        "horizon": 10000,
        "gamma": 1,
        "lam": 0.95,
        "cliprange": 0.2,
        "cliprange_value": 0.2,
        "vf_coef": 0.1,
        "batch_size": 128,
        "forward_batch_size": None,
        "mini_batch_size": 128,
        "gradient_accumulation_steps": 1,
        "world_size": None,
        "ppo_epochs": 4,
        "max_grad_norm": None,
        "optimize_cuda_cache": None,
        "optimize_device_cache": False,
        "early_stopping": False,
        "target_kl": 1,
        "compare_steps": 1,
        "ratio_threshold": 10.0,
        "use_score_scaling": False,
        "use_score_norm": False,
        "score_clip": None,
        "whiten_rewards": False,
    }
    config = PPOConfig()
    assert {name: getattr(config, name) for name in expected} == expected
