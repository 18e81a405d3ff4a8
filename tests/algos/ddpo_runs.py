"""A tiny Stable Diffusion pipeline, and short runs of `DDPOTrainer` on it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fastrl.algos.ddpo import DDPOTrainer
from fastrl.algos.ddpo_config import DDPOConfig
from fastrl.models.diffusion import DefaultDDPOStableDiffusionPipeline

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "examples" / "scripts")]

import tiny_pipeline  # noqa: E402
from ddpo_parity.cases import COMMON, Prompts, reward  # noqa: E402


@pytest.fixture(scope="session", name="folder")
def pipeline_folder(tmp_path_factory):
    """A tiny Stable Diffusion pipeline's."""
    place = tmp_path_factory.mktemp("pipeline")
    tiny_pipeline.save(place)
    return place


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
