"""GRPOConfig and RLOOConfig: TRL's fields and defaults, what is derived, and what is refused."""

import dataclasses
import json
import warnings
from pathlib import Path

import pytest
from transformers import TrainingArguments

from fastrl.algos.grpo_config import GRPOConfig
from fastrl.algos.grpo_losses import LOSSES, Settings
from fastrl.algos.rloo_config import RLOOConfig
from fastrl.train.parser import TrlParser

PEER = json.loads((Path(__file__).parent / "grpo_peer" / "configs.json").read_text())
# What TRL does not have.
OURS = {"balance_ranks", "dynamic_sampling", "dynamic_sampling_rounds", "reward_timeout"}
CONFIGS = [GRPOConfig, RLOOConfig]


@pytest.fixture(params=CONFIGS)
def config(request):
    def make(**arguments):
        return request.param("out", use_cpu=True, **arguments)

    return make


def grpo(**arguments):
    return GRPOConfig("out", use_cpu=True, **arguments)


def rloo(**arguments):
    return RLOOConfig("out", use_cpu=True, **arguments)


@pytest.mark.parametrize("config", CONFIGS)
def test_fields_and_defaults_are_trls(config):
    ours = {f.name: f.default for f in dataclasses.fields(config)}
    expected = PEER[config.__name__]
    assert {name: ours.get(name, "absent") for name in expected} == expected
    plain = {f.name for f in dataclasses.fields(TrainingArguments)}
    assert ours.keys() - plain - expected.keys() == OURS


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_has_a_help_text(config):
    for f in dataclasses.fields(config):
        if f.init:
            assert f.metadata.get("help"), f.name


@pytest.mark.parametrize(
    ("given", "size", "steps"),
    [
        ({}, 8, 1),
        ({"gradient_accumulation_steps": 4}, 32, 4),
        ({"generation_batch_size": 24}, 24, 3),
        ({"generation_batch_size": 24, "gradient_accumulation_steps": 2}, 24, 3),
        ({"steps_per_generation": 5}, 40, 5),
        ({"generation_batch_size": 40, "steps_per_generation": 5}, 40, 5),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, 8, 4),
    ],
)
def test_generation_batch(config, given, size, steps):
    args = config(num_generations=2, **given)
    assert (args.generation_batch_size, args.steps_per_generation) == (size, steps)


BOTH_REFUSE = [
    ({"generation_batch_size": 12}, "generation_batch_size=12 is no multiple of .* = 8"),
    ({"generation_batch_size": 16, "steps_per_generation": 3}, "disagree.*set one of them"),
    ({"steps_per_generation": 0}, "steps_per_generation must be 1 or more, got 0"),
    ({"num_generations": 3}, "generation_batch_size=8 is no multiple of num_generations=3"),
    ({"num_generations": 1}, "num_generations must be 2 or more, got 1"),
    ({"eval_strategy": "steps", "num_generations_eval": 3}, "= 8 is no multiple of the 3"),
    ({"auto_find_batch_size": True}, "set it to False and lower per_device_train_batch_size"),
    ({"temperature": 0.0}, "temperature must be positive"),
    ({"top_p": 0.0}, "top_p must be above 0"),
    ({"top_k": -1}, r"top_k must be 0 \(all tokens\)"),
    ({"min_p": 1.5}, "min_p must be between"),
    ({"repetition_penalty": 0.0}, "repetition_penalty must be positive"),
    ({"max_completion_length": 0}, "max_completion_length must be 1 or more"),
    ({"num_iterations": 0}, "num_iterations must be 1 or more"),
    ({"beta": -0.1}, "beta must be 0 or more"),
    ({"epsilon": -0.1}, "epsilon must be 0 or more"),
    ({"vllm_mode": "colocated"}, "vllm_mode='colocated' is none of colocate, server.*colocate"),
    ({"vllm_model_impl": "hf"}, "vllm_model_impl='hf' is none of vllm, transformers"),
    ({"use_vllm": True, "use_transformers_continuous_batching": True}, "two engines; set one"),
    ({"sync_ref_model": True, "beta": 0.0}, "beta=0 does not load; set beta"),
    ({"pad_to_multiple_of": "some"}, "pad_to_multiple_of must be 'auto' or a number"),
]
TRUNCATE = {"vllm_importance_sampling_mode": "token_truncate"}
GRPO_REFUSES = [
    ({"loss_type": "gspo"}, f"loss_type='gspo' is none of {', '.join(LOSSES)}"),
    ({"importance_sampling_level": "tokens"}, "is none of token, sequence"),
    ({"scale_rewards": "all"}, "scale_rewards='all' is none of group, batch, none"),
    ({"multi_objective_aggregation": "sum"}, "is none of sum_then_normalize"),
    ({"vllm_importance_sampling_mode": "mask"}, "is none of token_truncate"),
    ({"vllm_importance_sampling_clip_min": 3.0}, "clip_min=3.0 must be below .*clip_max=3.0"),
    ({**TRUNCATE, "vllm_importance_sampling_clip_max": None}, "needs a bound"),
    ({"loss_type": "vespo", "use_vllm": True}, "write 'token_truncate' or 'token_mask'"),
    ({"loss_type": "dr_grpo", "max_completion_length": None}, "divides by max_completion_length"),
    ({"loss_type": "sapo", "sapo_temperature_neg": 0.0}, "sapo_temperature_neg must be positive"),
    ({"delta": 0.0}, "delta must be positive"),
    ({"log_completions_hub_repo": "a/b"}, "set log_completions=True"),
    ({"top_entropy_quantile": 1.2}, "top_entropy_quantile must be between 0 and 1"),
    ({"entropy_coef_min": 2.0}, "entropy_coef_min=2.0 is above"),
    ({"max_tool_calling_iterations": 0}, "max_tool_calling_iterations must be 1 or more"),
]


@pytest.mark.parametrize(("given", "message"), BOTH_REFUSE)
def test_both_refuse(config, given, message):
    with pytest.raises(ValueError, match=message):
        config(**given)


@pytest.mark.parametrize(("given", "message"), GRPO_REFUSES)
def test_grpo_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        grpo(**given)


def test_what_looks_alike_is_accepted():
    grpo(loss_type="vespo")  # the mode is vLLM's, which is not used
    grpo(loss_type="vespo", use_vllm=True, **TRUNCATE)
    grpo(vllm_importance_sampling_clip_max=None)  # masks without bounds: nothing is masked
    grpo(eval_strategy="steps", num_generations_eval=1)
    grpo(sync_ref_model=True, beta=0.1)


@pytest.mark.parametrize("bounds", [10.0, (1.0,), (2.0, 1.0)])
def test_rloo_refuses_clip_ranges(bounds):
    with pytest.raises(ValueError, match=r"must be \(lowest, highest\), got .*write \(-10.0, 10"):
        rloo(reward_clip_range=bounds)
    assert rloo(reward_clip_range=(-1.0, 1.0)).reward_clip_range == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("given", "scale"), [(True, "group"), (False, "none"), ("false", "none"), ("batch",) * 2]
)
def test_scale_rewards(given, scale):
    assert grpo(scale_rewards=given).scale_rewards == scale


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        ({"loss_type": "luspo"}, "luspo is defined with"),
        ({"loss_type": "vespo", "importance_sampling_level": "sequence"}, "vespo has a ratio"),
        ({"loss_type": "dapo", "importance_sampling_level": "sequence"}, "'dapo' weighs answers"),
        ({"loss_type": "cispo", "delta": 2.0}, "delta has no effect on loss_type 'cispo'"),
        ({"loss_type": "grpo", "importance_sampling_level": "sequence", "delta": 2.0}, None),
    ],
)
def test_unusual_settings_are_told(given, warned, caplog):
    grpo(**given)
    told = [r.getMessage() for r in caplog.records if r.name == "fastrl.algos.grpo_config"]
    assert len(told) == (warned is not None)
    assert all(warned in line for line in told)


def warned_of(make, **given):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        args = make(**given)
    ours = [w for w in caught if any(name in str(w.message) for name in given)]
    assert [w.category for w in ours] == [FutureWarning], [str(w.message) for w in caught]
    assert ours[0].filename == __file__, "the warning points into the library"
    return args


def test_fields_under_their_old_names():
    cap = warned_of(grpo, vllm_importance_sampling_cap=2.0)
    assert cap.vllm_importance_sampling_clip_max == 2.0
    for make in (grpo, rloo):
        assert warned_of(make, use_transformers_paged=True).use_transformers_continuous_batching
        assert warned_of(make, vllm_max_model_len=99).vllm_max_model_length == 99
        warned_of(make, max_prompt_length=256)
    old = warned_of(rloo, rloo_k=4, kl_coef=0.1, cliprange=0.3, num_ppo_epochs=2)
    assert (old.num_generations, old.beta, old.epsilon, old.num_iterations) == (4, 0.1, 0.3, 2)
    assert warned_of(rloo, response_length=53).max_completion_length == 53
    with pytest.raises(TypeError, match=r"no longer takes total_episodes=100.*max_steps="):
        rloo(total_episodes=100)


def test_unknown_field_names_the_closest():
    with pytest.raises(TypeError, match=r"num_generation'.*num_generations"):
        grpo(num_generation=4)


def test_command_line():
    parser = TrlParser([GRPOConfig])
    line = '--output_dir out --use_cpu --loss_type grpo --generation_kwargs {"seed":1}'
    (args,) = parser.parse_args_and_config([*line.split(), "--reward_weights", "1", "0.5"])
    assert (args.loss_type, args.generation_kwargs) == ("grpo", {"seed": 1})
    assert args.reward_weights == [1.0, 0.5]
    (args,) = TrlParser([RLOOConfig]).parse_args_and_config(
        ["--output_dir", "out", "--use_cpu", "--reward_clip_range", "-1", "1"]
    )
    assert args.reward_clip_range == [-1.0, 1.0]


def test_the_losses_read_the_config():
    chosen = Settings.of(grpo(loss_type="sapo", epsilon=0.1, beta=0.2))
    assert (chosen.loss_type, chosen.beta, chosen.above) == ("sapo", 0.2, 0.1)
    assert Settings.of(grpo(epsilon_high=0.28)).above == 0.28
