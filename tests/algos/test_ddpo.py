"""`DDPOTrainer`: runs of TRL 0.7.11 repeated, its loss by hand, and what a run does and keeps."""

from __future__ import annotations

import json
import sys
import types
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler

from fastrl.algos.align_prop import AlignPropTrainer
from fastrl.algos.align_prop_config import AlignPropConfig
from fastrl.algos.ddpo import DDPOTrainer, ddpo_loss
from fastrl.algos.ddpo_config import DDPOConfig
from fastrl.models.diffusion import DefaultDDPOStableDiffusionPipeline

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "examples" / "scripts")]

import tiny_pipeline  # noqa: E402
from ddpo_parity.cases import CASES, reward, run_case  # noqa: E402

from tests import two_ranks  # noqa: E402
from tests.algos.ddpo_runs import (  # noqa: E402, F401
    Quiet,
    build,
    pipeline_folder,
    settings,
    weights,
)

RECORDED = json.loads((HERE.parent / "fixtures" / "ddpo.json").read_text())["cases"]
FASTRL = types.SimpleNamespace(
    AlignPropConfig=AlignPropConfig,
    AlignPropTrainer=AlignPropTrainer,
    DDPOConfig=DDPOConfig,
    DDPOTrainer=DDPOTrainer,
    DefaultDDPOStableDiffusionPipeline=DefaultDDPOStableDiffusionPipeline,
)


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
