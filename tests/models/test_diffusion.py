"""Stable Diffusion pipelines: their steps against diffusers' scheduler, and what is on disk."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from fastrl.models import diffusion
from fastrl.models.diffusion import DDPOStableDiffusionPipeline, DefaultDDPOStableDiffusionPipeline
from fastrl.models.diffusion_sampling import scheduler_step

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "scripts"))

import tiny_pipeline

SHAPE = (2, 4, 8, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline.save(place)
    return place


def drawn(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "settings",
    [
        {"prediction_type": "epsilon", "clip_sample": False},
        {"prediction_type": "v_prediction", "clip_sample": True, "clip_sample_range": 0.5},
        {"prediction_type": "sample", "thresholding": True},
    ],
    ids=lambda settings: settings["prediction_type"],
)
@pytest.mark.parametrize("clipped", [False, True])
def test_a_step_is_that_of_diffusers(settings, clipped):
    scheduler = DDIMScheduler(steps_offset=1, **settings)
    scheduler.set_timesteps(10)
    output, sample, noise = drawn(0), drawn(1), drawn(2)
    step = torch.tensor(401)
    given = {"eta": 0.6, "use_clipped_model_output": clipped}
    mean = scheduler.step(output, step, sample, variance_noise=noise * 0, **given).prev_sample
    after = scheduler.step(output, step, sample, variance_noise=noise, **given).prev_sample
    deviation = ((after - mean) / noise).mean()
    expected = torch.distributions.Normal(mean, deviation).log_prob(after).mean(dim=(1, 2, 3))
    found = scheduler_step(scheduler, output, step, sample, prev_sample=after, **given)
    assert torch.equal(found.latents, after)
    torch.testing.assert_close(found.log_probs, expected, rtol=1e-4, atol=1e-4)
    rows = scheduler_step(
        scheduler, output, torch.tensor([401, 401]), sample, prev_sample=after, **given
    )
    torch.testing.assert_close(rows.log_probs, found.log_probs)
    torch.manual_seed(3)
    own = scheduler_step(scheduler, output, step, sample, **given).latents
    torch.manual_seed(3)
    torch.testing.assert_close(own, mean + deviation * torch.randn(SHAPE), rtol=1e-4, atol=1e-4)


def test_the_density_is_of_the_latents_that_are_kept():
    """In half precision what is scored later is what was drawn, rounded."""
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    scheduler.set_timesteps(50)
    output, sample = drawn(0).half(), drawn(1).half()
    taken = scheduler_step(scheduler, output, torch.tensor(21), sample, eta=1.0)
    again = scheduler_step(
        scheduler, output, torch.tensor([21, 21]), sample, eta=1.0, prev_sample=taken.latents
    )
    assert taken.latents.dtype == torch.float16 and taken.log_probs.dtype == torch.float32
    assert torch.equal(taken.log_probs, again.log_probs)


def test_what_a_step_refuses():
    scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler_step(scheduler, drawn(0), 1, drawn(1))
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="prev_sample or generator, not both"):
        scheduler_step(
            scheduler, drawn(0), 1, drawn(1), generator=torch.Generator(), prev_sample=drawn(2)
        )


def test_a_call_is_that_of_diffusers(folder):
    """Without noise the images are those of the pipeline itself; every keyword does something."""
    pipeline = DefaultDDPOStableDiffusionPipeline(str(folder), use_lora=False)
    pipeline.set_progress_bar_config(disable=True)
    start = drawn(5)
    given = {"prompt": ["red cat", "dog"], "num_inference_steps": 3, "latents": start,
             "negative_prompt": ["dark", "dull"], "guidance_scale": 4.0}  # fmt: skip
    # The last step of TRL's scheduler ends at the first alpha, not at a final one.
    pipeline.sd_pipeline.scheduler.final_alpha_cumprod = pipeline.scheduler.alphas_cumprod[0]
    for more in ({}, {"guidance_rescale": 0.7}, {"guidance_scale": 1.0}):
        found = pipeline(output_type="np", **{**given, **more})
        theirs = pipeline.sd_pipeline(output_type="np", **{**given, **more})
        assert abs(found.images - theirs.images).max() < 1e-4
    seen = []
    calls = {"callback": lambda *a: seen.append(a[0]), "callback_steps": 2, "eta": 1.0}
    images, path, logp = pipeline(
        **given, **calls, return_dict=False, num_images_per_prompt=1, output_type="pt",
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    again = pipeline(**given, eta=1.0, output_type="pt", generator=torch.Generator().manual_seed(1))
    assert torch.equal(images, again.images) and images.shape == (2, 3, 16, 16)
    assert (len(path), len(logp), seen) == (4, 3, [0, 2])
    assert torch.equal(path[0], start) and torch.stack(logp).isfinite().all()
    assert not images.requires_grad and path[-1] is not path[0]
    with pytest.raises(TypeError, match="num_steps"):
        pipeline("red cat", num_steps=3)


def test_gradients_reach_the_steps_that_are_meant(folder):
    """Those of the last step alone are those of a call that starts there."""
    pipeline = DefaultDDPOStableDiffusionPipeline(str(folder), use_lora=False)
    pipeline.set_progress_bar_config(disable=True)

    def gradient(**settings):
        pipeline.unet.zero_grad()
        torch.manual_seed(0)
        found = pipeline.rgb_with_grad(
            "cat", num_inference_steps=3, eta=1.0, output_type="pt", latents=drawn(1)[:1],
            **settings,
        )  # fmt: skip
        found.images.mean().backward()
        return torch.cat([w.grad.flatten() for w in pipeline.unet.parameters()])

    full = gradient(truncated_backprop=False)
    plain = gradient(truncated_backprop=False, gradient_checkpoint=False)
    torch.testing.assert_close(full, plain, rtol=1e-4, atol=1e-7)
    fixed = {"truncated_backprop_rand": False}
    first = gradient(truncated_backprop_timestep=0, **fixed)
    torch.testing.assert_close(full, first)
    last = gradient(truncated_backprop_timestep=2, **fixed)
    assert (last - full).norm() > 0.05 * full.norm()
    calls = []
    hook = pipeline.unet.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    gradient(truncated_backprop_timestep=2, gradient_checkpoint=False, **fixed)
    gradient(truncated_rand_backprop_minmax=(1, 1), gradient_checkpoint=False)
    hook.remove()
    assert calls == [False, False, True, False, True, True]


def test_lora_is_saved_beside_the_unet_as_it_was(folder, tmp_path):
    pipeline = DefaultDDPOStableDiffusionPipeline(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    layers = pipeline.get_trainable_layers()
    trained = {n: p for n, p in layers.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert sum(p.numel() for p in trained.values()) < 0.2 * sum(
        p.numel() for p in layers.parameters()
    )
    for parameter in trained.values():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(layers.conv_in.bias)  # the base is written as it is, too
    pipeline.save_pretrained(tmp_path)
    again = DefaultDDPOStableDiffusionPipeline(str(tmp_path), use_lora=False)
    again.set_progress_bar_config(disable=True)
    assert again.use_lora
    found = dict(again.get_trainable_layers().named_parameters())
    assert {name for name, weight in found.items() if weight.requires_grad} == trained.keys()
    for name, weight in layers.named_parameters():
        assert torch.equal(weight, found[name]), name
    plain = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert torch.equal(plain.conv_in.bias, layers.conv_in.bias)
    assert {n.replace(".base_layer.", ".") for n in found if ".lora_" not in n} == {
        n for n, _ in plain.named_parameters()
    }


def test_what_a_checkpoint_refuses(folder, tmp_path):
    pipeline = DefaultDDPOStableDiffusionPipeline(str(folder))
    with pytest.raises(ValueError, match="one UNet is trained, got 2"):
        pipeline.save_checkpoint([1, 2], [], str(tmp_path))
    with pytest.raises(ValueError, match="a UNet of diffusers with LoRA is wanted"):
        pipeline.save_checkpoint([pipeline.unet], [], str(tmp_path))
    with pytest.raises(ValueError, match="LoRA is wanted, got Linear"):
        pipeline.load_checkpoint([torch.nn.Linear(1, 1)], str(tmp_path))


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "diffusers" else True
    )
    with pytest.raises(ImportError, match="pip install diffusers"):
        diffusion.DefaultDDPOStableDiffusionPipeline("anything")


def test_without_peft(folder, monkeypatch):
    """The UNet can be trained; LoRA's error names the package, not a backend of diffusers."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "peft" else find(name, *a)
    )
    monkeypatch.setattr("diffusers.loaders.lora_base.USE_PEFT_BACKEND", False)
    pipeline = DefaultDDPOStableDiffusionPipeline(str(folder), use_lora=False)
    assert pipeline.get_trainable_layers() is pipeline.unet
    with pytest.raises(ImportError, match="pip install peft"):
        DefaultDDPOStableDiffusionPipeline(str(folder))


def test_the_interface_gives_nothing_away():
    bare = DDPOStableDiffusionPipeline()
    for name in ("unet", "vae", "tokenizer", "scheduler", "text_encoder", "autocast"):
        with pytest.raises(NotImplementedError):
            getattr(bare, name)
    methods = (
        *("__call__", "scheduler_step", "rgb_with_grad", "set_progress_bar_config"),
        *("save_pretrained", "get_trainable_layers", "save_checkpoint", "load_checkpoint"),
    )
    for name in methods:
        with pytest.raises(NotImplementedError):
            getattr(bare, name)()
