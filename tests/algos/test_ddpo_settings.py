"""`DDPOTrainer`: its settings, what trackers start with, and what is refused."""

from __future__ import annotations

import types

import pytest
import torch
from accelerate.utils import LoggerType

import fastrl
from fastrl.algos.align_prop import AlignPropTrainer
from fastrl.algos.align_prop_config import AlignPropConfig
from fastrl.algos.ddpo import DDPOTrainer
from fastrl.algos.ddpo_config import DDPOConfig
from fastrl.train.diffusion import _last_checkpoint
from tests.algos.ddpo_runs import (  # noqa: F401
    Prompts,
    Quiet,
    build,
    pipeline_folder,
    reward,
    settings,
    weights,
)


@pytest.mark.parametrize(
    ("rewarded", "said"),
    [
        (lambda *_: (torch.ones(2),), r"must return \(rewards, metadata\), got tuple of 1"),
        (lambda *_: ([0.5, None], {}), r"numbers as rewards, got \[0.5, None\]"),
        (lambda *_: torch.ones(2), r"must return \(rewards, metadata\), got Tensor"),
        (lambda *_: (torch.ones(3), {}), r"one reward for each of 2 images.*got \(3,\)"),
        (lambda *_: (torch.tensor([1.0, float("nan")]), {}), "not finite"),
    ],
)
def test_wrong_rewards_change_nothing(folder, rewarded, said):
    trainer = build(folder, rewarded=rewarded)
    start = weights(trainer).clone()
    with pytest.raises(ValueError, match=said):
        trainer.train(1)
    assert torch.equal(weights(trainer), start) and not trainer.log_history


def test_a_step_without_noise_is_refused(folder):
    trainer = build(folder)
    trainer.sd_pipeline.sd_pipeline.scheduler.register_to_config(steps_offset=0)
    with pytest.raises(ValueError, match="steps_offset at least 1"):
        trainer.train(1)


def test_arguments_that_are_none(folder):
    pipeline = Quiet(str(folder), use_lora=False)
    for given, said in (
        ((AlignPropConfig(), reward, Prompts(), pipeline), "config must be a DDPOConfig"),
        ((settings(), None, Prompts(), pipeline), "reward_function must be callable, got NoneType"),
        ((settings(), reward, "cat", pipeline), "prompt_function must be callable, got str"),
        ((settings(), reward, Prompts(), pipeline, 3), "image_samples_hook must be callable"),
        ((settings(), reward, Prompts(), pipeline.sd_pipeline), "without get_trainable_layers"),
        (
            (settings(train_batch_size=4), reward, Prompts(), pipeline),
            "sample_batch_size=2 must be a multiple of train_batch_size=4",
        ),
        (
            (settings(train_gradient_accumulation_steps=2), reward, Prompts(), pipeline),
            "the 2 samples of an epoch .* multiple of the 4",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            DDPOTrainer(*given)
    with pytest.raises(ValueError, match=r"prompt_function must return \(prompt, metadata\)"):
        build(folder, prompts=lambda: "cat").train(1)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("sample_eta", 0, "finite and above 0"),
        ("train_timestep_fraction", 0.01, "leaves no step"),
        ("train_timesteps_per_pass", 3, "must divide the 2 steps"),
        ("train_timestep_fraction", 1.5, r"in \(0, 1\]"),
        ("train_adam_beta1", 1.0, r"in \[0, 1\)"),
        ("sample_batch_size", 0, "at least 1"),
        ("seed", -1, "at least 0"),
        ("train_cfg", "yes", "True or False"),
        ("mixed_precision", "fp32", "no, fp16, bf16, fp8"),
        ("negative_prompts", ["dark"], "one prompt is needed, a string"),
        ("project_kwargs", "x", "no JSON object"),
        ("accelerator_kwargs", [1], "dict of keyword arguments"),
        ("train_learning_rate", float("nan"), "finite and at least 0"),
    ],
)
def test_values_that_are_none(name, value, said):
    with pytest.raises(ValueError, match=rf"{name}=.*{said}"):
        settings(**{name: value})


def test_statistics_that_no_prompt_could_reach():
    """A prompt whose buffer is below the least count would be compared with the batch for ever."""
    few = {"per_prompt_stat_tracking_buffer_size": 8}
    settings(**few)
    with pytest.raises(ValueError, match=r"buffer_size=8: no prompt would reach .*min_count=16"):
        settings(per_prompt_stat_tracking=True, **few)
    settings(per_prompt_stat_tracking=True, per_prompt_stat_tracking_min_count=8, **few)


def test_a_folder_to_resume_from(tmp_path):
    for name in ("checkpoint_old", "checkpoint_2", "checkpoint_10", "checkpoint_last"):
        (tmp_path / "checkpoint_here" / name).mkdir(parents=True)
    folder = tmp_path / "checkpoint_here"
    assert _last_checkpoint(str(folder)) == folder / "checkpoint_10"
    assert _last_checkpoint(str(folder / "checkpoint_2")) == folder / "checkpoint_2"
    for place in (folder / "checkpoint_old", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=f"resume_from='{place}': no checkpoint_N there"):
            _last_checkpoint(str(place))


def test_a_hook_that_fails_comes_before_training(folder):
    def fail(*_):
        raise OSError("the disk is full")

    trainer = build(folder, hook=fail)
    start = weights(trainer).clone()
    with pytest.raises(OSError, match="disk is full"):
        trainer.train(1)
    assert torch.equal(weights(trainer), start) and not trainer.log_history


def test_the_config_on_a_command_line_and_as_a_dict():
    parser = fastrl.TrlParser((DDPOConfig,))
    words = ["--num_epochs=200", "--per_prompt_stat_tracking=True", "--log_with", "tensorboard"]
    words += ["--tracker_kwargs", '{"wandb": {"entity": "me"}}']
    (config,) = parser.parse_args_and_config(words)
    assert (config.num_epochs, config.per_prompt_stat_tracking) == (200, True)
    found = config.to_dict()
    assert found["tracker_kwargs/wandb/entity"] == "me" and found["log_with"] == "tensorboard"
    assert "project_kwargs" not in found


def test_a_trained_pipeline_is_pushed_if_asked_to(folder, monkeypatch):
    pushed = []
    monkeypatch.setattr(DDPOTrainer, "push_to_hub", lambda _, name: pushed.append(name))
    build(folder, num_epochs=1).train()
    assert not pushed
    build(folder, num_epochs=1, push_to_hub=True, run_name="me/mine").train()
    assert pushed == ["me/mine"]
    with pytest.raises(ValueError, match="push_to_hub=True: it is pushed to run_name, so name it"):
        settings(push_to_hub=True)


@pytest.mark.parametrize("log_with", ["tensorboard", ["wandb", "tensorboard"]])
def test_what_trackers_start_with(log_with):
    """TensorBoard takes numbers, texts and truth values only; wandb gets the run's name."""
    config = AlignPropConfig(run_name="mine", tracker_kwargs={"wandb": {"entity": "me"}})
    config.log_with = log_with
    given = {}
    names = [log_with] if isinstance(log_with, str) else log_with
    fake = types.SimpleNamespace(
        config=config,
        _title="AlignProp",
        accelerator=types.SimpleNamespace(
            log_with=[LoggerType(name) for name in names],
            init_trackers=lambda project, config, init_kwargs: given.update(config, **init_kwargs),
        ),
    )
    AlignPropTrainer._start_trackers(fake)
    name = {"name": "mine"} if "wandb" in log_with else {}
    assert given.pop("wandb") == {**name, "entity": "me"}
    assert given["truncated_rand_backprop_minmax"] == "[0, 50]" and given["save_freq"] == 1
    assert all(isinstance(value, bool | int | float | str | None) for value in given.values())
