"""`DDPOTrainer`: runs of TRL 0.7.11 repeated, its loss by hand, and what it refuses."""

from __future__ import annotations

import json
import sys
import types
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import LoggerType
from diffusers import DDIMScheduler

import fastrl
from fastrl.algos.align_prop import AlignPropTrainer
from fastrl.algos.align_prop_config import AlignPropConfig
from fastrl.algos.ddpo import DDPOTrainer, ddpo_loss
from fastrl.algos.ddpo_config import DDPOConfig
from fastrl.models.diffusion import DefaultDDPOStableDiffusionPipeline
from fastrl.train.diffusion import _last_checkpoint

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "examples" / "scripts")]

import tiny_pipeline  # noqa: E402
from ddpo_parity.cases import CASES, COMMON, Prompts, reward, run_case  # noqa: E402

from tests import two_ranks  # noqa: E402

RECORDED = json.loads((HERE.parent / "fixtures" / "ddpo.json").read_text())["cases"]
FASTRL = types.SimpleNamespace(
    AlignPropConfig=AlignPropConfig,
    AlignPropTrainer=AlignPropTrainer,
    DDPOConfig=DDPOConfig,
    DDPOTrainer=DDPOTrainer,
    DefaultDDPOStableDiffusionPipeline=DefaultDDPOStableDiffusionPipeline,
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny Stable Diffusion pipeline's."""
    place = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline.save(place)
    return place


@pytest.fixture
def fresh_accelerator():
    """Precision is set once a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


QUICK = ("full", "fixed_truncation")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if case.name in QUICK else pytest.mark.slow)
        for case in CASES
    ],
)
def test_losses_rewards_and_weights_are_trls(case, folder):
    found, recorded = run_case(case, FASTRL, folder), RECORDED[case.name]
    assert len(found["log"]) == len(recorded["log"]) >= 10
    for ours, theirs in zip(found["log"], recorded["log"], strict=True):
        kl = {side.pop("approx_kl", 0) for side in (ours, theirs)}  # of two: up to 10⁵ times a loss
        assert max(kl) == pytest.approx(min(kl), rel=1e-3, abs=1e-4)
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert found["norm"] == pytest.approx(recorded["norm"], rel=1e-5)
    assert found["draw"] == recorded["draw"]


def settings(**more):
    """Two images an epoch in one optimizer step, unless `more` says otherwise."""
    base = {
        "sample_num_steps": 2,
        "sample_batch_size": 2,
        "sample_num_batches_per_epoch": 1,
        "train_batch_size": 2,
        "train_clip_range": 0.1,
        "save_freq": 1000,
    }
    return DDPOConfig(**{**COMMON, **base, **more})


class Quiet(DefaultDDPOStableDiffusionPipeline):
    def set_progress_bar_config(self, **_):
        super().set_progress_bar_config(disable=True)


def build(folder, use_lora=False, rewarded=reward, prompts=None, hook=None, **more):
    pipeline = Quiet(str(folder), use_lora=use_lora)
    return DDPOTrainer(settings(**more), rewarded, prompts or Prompts(), pipeline, hook)


def weights(trainer):
    parameters = trainer.sd_pipeline.unet.parameters()
    return torch.cat([p.detach().flatten() for p in parameters if p.requires_grad])


def metrics(trainer):
    return [{k: v for k, v in row.items() if k != "reward"} for row in trainer.log_history]


def test_the_loss_by_hand():
    advantages = torch.tensor([2.0, 2.0, -1.0, -1.0])
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5], requires_grad=True)
    loss = ddpo_loss(advantages, 0.2, ratio)
    # max(−3, −2.4), max(−1, −1.6), max(1.5, 1.2), max(0.5, 0.8)
    assert loss.item() == pytest.approx((-2.4 - 1 + 1.5 + 0.8) / 4)
    loss.backward()
    assert ratio.grad.tolist() == [0, -0.5, 0.25, 0]


def test_accumulated_batches_are_one(folder):
    """Passes of two images, of one, and of both steps of two take the same optimizer steps."""
    found = []
    one = {"train_batch_size": 1, "train_gradient_accumulation_steps": 2}
    for more in ({}, one, {"train_timesteps_per_pass": 2}):
        # Adam follows the signs of gradients that are rounding alone, unless epsilon is above them.
        trainer = build(folder, train_adam_epsilon=1e-3, **more)
        start = weights(trainer).clone()
        trainer.train(2)
        assert len(trainer.log_history) == 4
        found.append(weights(trainer))
    assert (found[0] - start).abs().max() > 1e-5
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)


def drawn_prompt():
    return str(torch.randint(9, ()).item()), {}


def test_a_resumed_run_is_the_uninterrupted_one(folder, tmp_path):
    """Weights, optimizer, generators, steps and the rewards of each prompt come back."""
    more = {
        "use_lora": True,
        "prompts": drawn_prompt,
        "per_prompt_stat_tracking": True,
        "per_prompt_stat_tracking_min_count": 2,
        "num_checkpoint_limit": 2,
        "logdir": str(tmp_path),
        "run_name": "mine",
        "save_freq": 1,
    }
    through = build(folder, **more)
    through.train(4)
    kept = tmp_path / "mine" / "checkpoints"
    assert sorted(p.name for p in kept.iterdir()) == ["checkpoint_1", "checkpoint_2"]
    (kept / "checkpoint_2").rename(tmp_path / "away")
    again = build(folder, **more, resume_from=str(kept))
    assert again.first_epoch == 3 and not torch.equal(weights(again), weights(through))
    again.train(4)
    assert metrics(again) == metrics(through)[-2:]
    assert torch.equal(weights(again), weights(through))
    assert again.stat_tracker.get_stats() == through.stat_tracker.get_stats()
    assert sorted(p.name for p in kept.iterdir()) == ["checkpoint_1", "checkpoint_2"]


def test_a_checkpoint_of_trls(folder, tmp_path):
    """It holds no progress: epochs are counted from its number, as TRL does."""
    trainer = build(folder, logdir=str(tmp_path), save_freq=1)
    trainer.train(2)
    (tmp_path / "checkpoints" / "checkpoint_0" / "progress.json").unlink()
    again = build(folder, logdir=str(tmp_path), resume_from=str(tmp_path / "checkpoints"))
    assert again.first_epoch == 1
    assert torch.equal(weights(again), weights(trainer))


def test_rewards_in_threads_are_the_same(folder):
    """They run while the next batch is drawn; functions may also answer with futures."""
    import threading

    threads, two = [], {"sample_num_batches_per_epoch": 2, "train_gradient_accumulation_steps": 2}

    def rewarded(*given):
        threads.append(threading.current_thread() is threading.main_thread())
        rewards, details = reward(*given)
        future = Future()
        future.set_result(rewards)
        return (future if len(threads) == 2 else rewards), details

    plain = build(folder, **two)
    plain.train(1)
    threaded = build(folder, rewarded=rewarded, async_reward_computation=True, **two)
    threaded.train(1)
    assert threads == [False, False]
    assert metrics(plain) == metrics(threaded) and torch.equal(weights(plain), weights(threaded))
    assert not threaded._scoring


def test_the_hook_sees_images_and_rewards(folder):
    seen = []
    trainer = build(folder, hook=lambda *given: seen.append(given))
    with pytest.warns(UserWarning, match="tracker that keeps nothing"):
        trainer.train(1)
    ((data, step, tracker),) = seen
    ((images, prompts, metadata, rewards, details),) = data
    assert images.shape == (2, 3, 16, 16) and 0 <= images.min() <= images.max() <= 1
    assert prompts == ("blue dog", "red cat") or len(prompts) == 2
    assert [one["number"] for one in metadata] == [1, 2] and (step, details) == (0, {})
    torch.testing.assert_close(rewards, reward(images, prompts, metadata)[0])
    tracker.log_images({"image": images})


def test_half_precision_waits_for_a_gpu(folder):
    with pytest.warns(UserWarning, match="mixed_precision='fp16' needs a GPU"):
        trainer = build(folder, mixed_precision="fp16")
    assert trainer.accelerator.mixed_precision == "no"


def test_trained_weights_stay_in_fp32_and_others_do_not(folder, fresh_accelerator):
    trainer = build(folder, use_lora=True, mixed_precision="bf16")
    trainer.train(1)
    unet = trainer.sd_pipeline.unet
    assert {p.dtype for p in unet.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in unet.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert trainer.sd_pipeline.vae.dtype == torch.bfloat16
    kls = [row["approx_kl"] for row in trainer.log_history if "approx_kl" in row]
    assert kls[0] < 1e-2  # nothing has been learnt before the first step


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


def test_saving_and_the_card(folder, tmp_path, monkeypatch):
    from fastrl.train import hub

    monkeypatch.setattr(hub, "whoami", lambda: {"name": "ada"})
    trainer = build(folder)
    trainer.save_pretrained(tmp_path / "bright")
    again = Quiet(str(tmp_path / "bright"), use_lora=False)
    found = torch.cat([p.detach().flatten() for p in again.unet.parameters()])
    assert torch.equal(found, weights(trainer))
    card = (tmp_path / "bright" / "README.md").read_text()
    assert "# TRL DDPO Model" in card and 'from_pretrained("ada/bright")' in card


@pytest.mark.slow
def test_brightness_rises(folder):
    """With noise that is alike at all steps, as no step of a thousand is."""

    def brightness(images, prompts, metadata):
        return images.mean(dim=(1, 2, 3)), {}

    pipeline = Quiet(str(folder), use_lora=False)
    pipeline.sd_pipeline.scheduler = DDIMScheduler(
        20, 0.05, 0.3, "linear", clip_sample=False, steps_offset=1
    )
    config = settings(
        num_epochs=11,
        sample_num_steps=3,
        sample_batch_size=16,
        sample_num_batches_per_epoch=2,
        train_batch_size=16,
        sample_guidance_scale=1.0,
        train_learning_rate=1e-3,
        seed=1,
    )
    trainer = DDPOTrainer(config, brightness, lambda: ("a", {}), pipeline)
    trainer.train()
    means = [row["reward_mean"] for row in trainer.log_history if "reward_mean" in row]
    assert sum(means[-4:]) / 4 > means[0] + 1.5 * trainer.log_history[0]["reward_std"], means


@pytest.mark.slow
def test_two_ranks_learn_together(tmp_path):
    """Their images differ, their weights do not; they resume, and one bad reward stops both."""
    tiny_pipeline.save(tmp_path / "pipeline")
    first, second = two_ranks.run(HERE / "ddpo_two_ranks" / "worker.py", tmp_path)
    for name in ("start", "weights", "again", "averaged"):
        assert torch.equal(first[name], second[name]), name
    assert not torch.equal(first["start"], first["weights"])
    assert torch.equal(first["weights"], first["again"])
    assert first["averaged"].eq(2).all()
    rewards = [row.pop("reward", None) for row in first["log"]]
    assert len(rewards[0]) == 4 and len(set(rewards[0].tolist())) == 4
    for ours, theirs in zip(first["log"], second["log"], strict=True):
        theirs.pop("reward", None)
        assert ours == theirs
    assert first["kept"] == second["kept"]
    assert sum(one["count"] for one in first["kept"].values()) == 12
    assert "failed on rank 1" in first["refused"] and "not finite" in second["refused"]
    assert "no picture" in first["hook"] and "hook failed on rank 0" in second["hook"]
    assert "failed on rank 1" in first["alignprop"] and "no_grad()" in second["alignprop"]


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
