"""Online DPO: settings and arguments that are refused, and calls as TRL 0.11 had them."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
from datasets import Dataset

from fastrl import OnlineDPOConfig, OnlineDPOTrainer
from tests.algos.offline_parity.making import model, tokenizer
from tests.algos.online_dpo_runs import PROMPTS, settings, trainer_of, vowels

# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss_type": "hinge"}, "loss_type='hinge' is none of sigmoid, ipo"),
        ({"beta": 0.0}, "beta must be positive"),
        ({"beta": []}, r"beta must be positive.*got \[\]"),
        ({"beta": [0.1, -1.0]}, "beta must be positive"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more"),
        ({"max_length": 1}, "max_length must leave room for 2"),
        ({"missing_eos_penalty": -1.0}, "missing_eos_penalty .* must be positive"),
        ({"steps_per_generation": 0}, "steps_per_generation must be 1 or more"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"vllm_mode": "remote"}, "vllm_mode='remote' is none of colocate, server"),
    ],
)
def test_a_config_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        OnlineDPOConfig("out", use_cpu=True, **given)


@pytest.mark.parametrize(
    "name", ["num_generations", "num_iterations", "epsilon", "max_completion_length"]
)
def test_a_config_has_no_field_that_would_do_nothing(name):
    with pytest.raises(TypeError, match=name):
        OnlineDPOConfig("out", use_cpu=True, **{name: 4})


def test_a_config_warns_where_no_prompt_would_be_left():
    with pytest.warns(UserWarning, match="max_new_tokens=512 is no less than max_length=512"):
        OnlineDPOConfig("out", use_cpu=True, max_new_tokens=512)


def test_batch_sizes_count_prompts():
    args = OnlineDPOConfig(
        "out", use_cpu=True, per_device_train_batch_size=3, gradient_accumulation_steps=4
    )
    assert (args.generation_batch_size, args.steps_per_generation) == (24, 4)
    assert args.beta == 0.1 and dataclasses.replace(args, beta=[0.1, 0.2]).beta == [0.1, 0.2]


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ({"data_collator": lambda rows: rows}, ValueError, "data_collator has no part"),
        ({"compute_metrics": lambda _: {}}, ValueError, "compute_metrics has no part"),
        ({"preprocess_logits_for_metrics": max}, ValueError, "preprocess_logits_for_metrics has"),
        ({"judge": object()}, ValueError, "reward_funcs is of rewards, and a judge gives none"),
        ({"ref_model": "somewhere"}, TypeError, "ref_model must be a model, got str"),
    ],
)
def test_arguments_that_are_refused(tmp_path, more, kind, message):
    with pytest.raises(kind, match=message):
        trainer_of(tmp_path, more=more)


def test_the_model_is_not_its_own_reference(tmp_path):
    from peft import LoraConfig

    policy = model()
    with pytest.raises(ValueError, match="ref_model is the object given as model"):
        OnlineDPOTrainer(
            policy,
            policy,
            vowels,
            OnlineDPOConfig(**settings(tmp_path)),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
            processing_class=tokenizer(),
            peft_config=LoraConfig(target_modules=["q_proj"]),
        )
    assert not any("lora" in name for name, _ in policy.named_parameters())


def test_rewards_are_required(tmp_path):
    with pytest.raises(ValueError, match="reward_funcs"):
        trainer_of(tmp_path, None)


# --- older calls ---------------------------------------------------------------------------------


def test_called_as_in_0_11(tmp_path):
    args = OnlineDPOConfig(**settings(tmp_path, max_steps=1))
    rows, score = Dataset.from_dict({"prompt": PROMPTS}), model("llama", "score")
    score.config._name_or_path = "judge"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = OnlineDPOTrainer(
            model(),
            reward_model=score,
            reward_processing_class=tokenizer(),
            args=args,
            judge=None,
            train_dataset=rows,
            tokenizer=tokenizer(),
        )
    (told,) = [str(w.message) for w in caught if "old spellings" in str(w.message)]
    assert "reward_model= is reward_funcs=" in told
    assert "reward_processing_class= is reward_processing_classes=" in told
    trainer.train()
    assert trainer.reward_func_names == ["judge"] and trainer._api_generation == "0.11"


def test_called_in_the_order_of_0_11(tmp_path):
    args = OnlineDPOConfig(**settings(tmp_path))
    rows = Dataset.from_dict({"prompt": PROMPTS})
    with pytest.warns(FutureWarning, match="order has changed"):
        trainer = OnlineDPOTrainer(
            model(), model(), vowels, None, args, None, rows, None, tokenizer()
        )
    assert trainer.args is args and trainer.reward_func_names == ["vowels"]
