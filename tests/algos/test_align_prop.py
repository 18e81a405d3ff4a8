"""`AlignPropTrainer`; beside TRL 0.11.4 it is run in test_ddpo.py."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch

import fastrl
from fastrl.algos.align_prop import AlignPropTrainer
from fastrl.algos.align_prop_config import AlignPropConfig
from fastrl.models.diffusion import DefaultDDPOStableDiffusionPipeline

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "examples" / "scripts")]

import tiny_pipeline  # noqa: E402
from ddpo_parity.cases import COMMON, Prompts, reward  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline.save(place)
    return place


def build(folder, rewarded=reward, hook=None, **more):
    pipeline = DefaultDDPOStableDiffusionPipeline(str(folder), use_lora=False)
    pipeline.set_progress_bar_config = lambda **_: None
    pipeline.sd_pipeline.set_progress_bar_config(disable=True)
    base = {"sample_num_steps": 2, "truncated_rand_backprop_minmax": (0, 0), "save_freq": 1000}
    config = AlignPropConfig(**{**COMMON, **base, **more})
    return AlignPropTrainer(config, rewarded, Prompts(), pipeline, hook)


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.sd_pipeline.unet.parameters()])


def test_the_loss_is_the_distance_from_ten(folder):
    trainer = build(folder)
    assert trainer.calculate_loss(torch.tensor([4.0, 5.0])).item() == 5.5


def test_rewards_must_carry_a_gradient(folder):
    trainer = build(folder, rewarded=lambda images, *_: (images.detach().mean((1, 2, 3)), {}))
    start = weights(trainer).clone()
    with pytest.raises(ValueError, match="DDPOTrainer takes any rewards"):
        trainer.train(1)
    assert torch.equal(weights(trainer), start)


def test_a_step_without_any_gradient_leaves_the_weights(folder):
    """Randomly truncated, it may happen that no denoising step is reached."""
    trainer = build(folder, truncated_rand_backprop_minmax=(0, 10**9), train_adam_weight_decay=0.0)
    start = weights(trainer).clone()
    trainer.train(1)
    assert torch.equal(weights(trainer), start)
    assert trainer.log_history[0]["loss"] == pytest.approx(
        10 - trainer.log_history[0]["reward_mean"]
    )


def test_a_step_without_any_gradient_is_the_same_for_all_weights(folder):
    """Ranks exchange the same gradients, whatever each of them drew."""
    trainer = build(folder, truncated_rand_backprop_minmax=(0, 10**9))
    trainer.train(1)
    assert all(weight.grad is not None for weight in trainer._descend.parameters)


def test_images_on_demand_and_for_the_hook(folder):
    seen = []
    trainer = build(folder, hook=lambda *given: seen.append(given), log_image_freq=2)
    with pytest.warns(UserWarning, match="tracker that keeps nothing"):
        trainer.train(3)
    ((data, step, _),) = seen
    assert step == 2 and data.keys() == {"images", "prompts", "prompt_metadata", "rewards"}
    torch.testing.assert_close(data["rewards"], reward(*list(data.values())[:3])[0])
    drawn = trainer._generate_samples(2, with_grad=False, prompts=["red cat", "dog"])
    assert not drawn["images"].requires_grad and drawn["prompts"] == ["red cat", "dog"]
    assert trainer._generate_samples(1)["images"].requires_grad


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("truncated_backprop_timestep", {"truncated_backprop_rand": False}, "no step is that late"),
        ("truncated_rand_backprop_minmax", {"truncated_rand_backprop_minmax": (2, 3)}, "late"),
        ("truncated_rand_backprop_minmax", {"truncated_rand_backprop_minmax": (1, 0)}, "in order"),
        ("truncated_rand_backprop_minmax", {"truncated_rand_backprop_minmax": (1,)}, "two whole"),
        ("truncated_rand_backprop_minmax", {"truncated_rand_backprop_minmax": 5}, "two whole"),
        ("log_image_freq", {"log_image_freq": 0}, "at least 1"),
    ],
)
def test_values_that_are_none(name, more, said):
    with pytest.raises(ValueError, match=f"{name}=.*{said}"):
        AlignPropConfig(sample_num_steps=2, **more)


def test_arguments_that_are_none(folder):
    pipeline = DefaultDDPOStableDiffusionPipeline(str(folder))
    with pytest.raises(ValueError, match="config must be an AlignPropConfig, got DDPOConfig"):
        AlignPropTrainer(fastrl.DDPOConfig(), reward, Prompts(), pipeline)
    names = ("vae", "text_encoder", "unet", "tokenizer", "scheduler", "get_trainable_layers")
    old = types.SimpleNamespace(**dict.fromkeys(names))
    with pytest.raises(ValueError, match="sd_pipeline has no rgb_with_grad"):
        AlignPropTrainer(AlignPropConfig(), reward, Prompts(), old)


def test_the_config_on_a_command_line():
    words = ["--truncated_rand_backprop_minmax", "5", "45", "--truncated_backprop_rand", "False"]
    (config,) = fastrl.TrlParser((AlignPropConfig,)).parse_args_and_config(words)
    assert list(config.truncated_rand_backprop_minmax) == [5, 45]
    assert config.truncated_backprop_rand is False


@pytest.mark.slow
def test_brightness_rises(folder):
    def brightness(images, prompts, metadata):
        return images.mean(dim=(1, 2, 3)), {}

    trainer = build(folder, brightness, num_epochs=15, train_batch_size=4, train_learning_rate=3e-3)
    trainer.train()
    means = [row["reward_mean"] for row in trainer.log_history]
    assert sum(means[-3:]) / 3 > means[0] + 2 * trainer.log_history[0]["reward_std"], means
