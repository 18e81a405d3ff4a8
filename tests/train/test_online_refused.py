"""What online trainers refuse: rows, settings, rollouts and rewards that do not fit."""

from __future__ import annotations

import pytest
from datasets import Dataset

from fastrl import GRPOConfig, GRPOTrainer
from tests.algos.offline_parity.making import model, tokenizer
from tests.train.online_runs import PROMPTS, arguments, grpo, same, vowels, weights

BAD_ROLLOUTS = {
    "no logprobs": ({"logprobs": ...}, "no logprobs"),
    "rows": ({"completion_ids": [[1]]}, "completion_ids has 1 rows for 8 prompts"),
    "ragged": ({"logprobs": [[0.0]] * 8}, r"logprobs\[0\] has 1 entries for the 2 tokens"),
    "empty": ({"completion_ids": [[]] * 8}, r"completion_ids\[0\] is empty"),
}


@pytest.mark.parametrize("case", BAD_ROLLOUTS)
def test_a_rollout_that_fits_no_rows_is_refused(tmp_path, case):
    changed, message = BAD_ROLLOUTS[case]

    def rollout(prompts, trainer):
        output = {
            "prompt_ids": [[5, 6]] * len(prompts),
            "completion_ids": [[7, 8]] * len(prompts),
            "logprobs": [[0.0, 0.0]] * len(prompts),
            **changed,
        }
        return {key: given for key, given in output.items() if given is not ...}

    trainer = grpo(tmp_path, more={"rollout_func": rollout})
    before = weights(trainer)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    same(before, weights(trainer), rtol=0, atol=0)


def without_end():
    plain = tokenizer()
    plain.eos_token = None
    return plain


REFUSED = {
    "rewards": (lambda f: grpo(f, None), "reward_funcs"),
    "weights": (lambda f: grpo(f, reward_weights=[1.0, 2.0]), "2 entries for 1 reward_funcs"),
    "prompt": (
        lambda f: GRPOTrainer(
            model(),
            vowels,
            GRPOConfig(**arguments(f)),
            Dataset.from_dict({"question": PROMPTS}),
            processing_class=tokenizer(),
        ),
        "no column 'prompt'.*rename_column",
    ),
    "few": (lambda f: grpo(f, rows=PROMPTS[:1]), "has 1 prompts, but a generation batch takes 2"),
    "long": (lambda f: grpo(f, rows=[*PROMPTS, "a" * 512]), "row 8: its prompt has 512 tokens"),
    "no end": (
        lambda f: GRPOTrainer(
            endless(),
            vowels,
            GRPOConfig(**arguments(f)),
            Dataset.from_dict({"prompt": PROMPTS}),
            processing_class=without_end(),
        ),
        "no eos_token",
    ),
    "two ways": (
        lambda f: grpo(f, more={"rollout_func": print, "tools": [print]}),
        "rollout_func draws whole answers",
    ),
    "sync": (
        lambda f: grpo(f, sync_ref_model=True),
        "sync_ref_model moves a reference that beta=0 does not load",
    ),
    "groups": (lambda f: grpo(f, num_generations=3), "no multiple of num_generations=3"),
    "stream": (
        lambda f: GRPOTrainer(
            model(),
            vowels,
            GRPOConfig(**arguments(f, dynamic_sampling=True)),
            Dataset.from_dict({"prompt": PROMPTS}).to_iterable_dataset(),
            processing_class=tokenizer(),
        ),
        "dynamic_sampling draws further prompts",
    ),
}


def endless():
    bare = model()
    bare.config.eos_token_id = bare.generation_config.eos_token_id = None
    return bare


@pytest.mark.parametrize("case", REFUSED)
def test_refused_at_construction(tmp_path, case):
    make, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        make(tmp_path)


BAD_REWARDS = {
    "length": (lambda completions, **_: [1.0], "1 .*8"),
    "string": (lambda completions, **_: "good", "str"),
    "nan": (lambda completions, **_: [float("nan")] * len(completions), "no reward function"),
}


@pytest.mark.parametrize("case", BAD_REWARDS)
def test_rewards_that_are_none_stop_before_the_first_step(tmp_path, case):
    function, message = BAD_REWARDS[case]
    trainer = grpo(tmp_path, function)
    before = weights(trainer)
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        trainer.train()
    same(before, weights(trainer), rtol=0, atol=0)


def test_ligers_loss_is_kept_from_the_models_forward(tmp_path):
    config = GRPOConfig(**arguments(tmp_path, use_liger_kernel=True))
    assert config.liger_kernel_config["fused_linear_cross_entropy"] is False
    with pytest.raises(ValueError, match="replaces the model's forward"):
        GRPOConfig(
            **arguments(
                tmp_path,
                use_liger_kernel=True,
                liger_kernel_config={"fused_linear_cross_entropy": True},
            )
        )
