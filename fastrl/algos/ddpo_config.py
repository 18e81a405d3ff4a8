"""Configuration of DDPO: the fields and defaults of TRL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastrl.train.diffusion_config import ABOVE_0, DiffusionConfig


@dataclass
class DDPOConfig(DiffusionConfig):
    """Settings of `DDPOTrainer`; those it shares are in `DiffusionConfig`.

    Args:
        sample_batch_size: images drawn at a time, per process.
        sample_num_batches_per_epoch: batches of them before there is training.
        train_num_inner_epochs: passes over the samples of an epoch.
        train_cfg: classifier-free guidance in training too, as when sampling.
        train_adv_clip_max: advantages are clipped to ± this.
        train_clip_range: the ratio of new to old density is clipped to 1 ± this.
        train_timestep_fraction: share of each path's steps that are trained on.
        per_prompt_stat_tracking: compare rewards with those of the same prompt.
        per_prompt_stat_tracking_buffer_size: rewards kept of a prompt.
        per_prompt_stat_tracking_min_count: with fewer, they are compared with the batch.
        async_reward_computation: reward functions run in threads while sampling goes on.
        max_workers: threads for them.
        train_timesteps_per_pass: ours; denoising steps of an image that go through the UNet at
            once. More are faster and take more memory, and the same optimizer steps come out.

    Raises:
        ValueError: as `DiffusionConfig`; `train_timestep_fraction` leaves no step, or
            `sample_eta=0`, which leaves no density to optimise.
    """

    sample_batch_size: int = 1
    sample_num_batches_per_epoch: int = 2
    train_num_inner_epochs: int = 1
    train_cfg: bool = True
    train_adv_clip_max: float = 5
    train_clip_range: float = 1e-4
    train_timestep_fraction: float = 1.0
    per_prompt_stat_tracking: bool = False
    per_prompt_stat_tracking_buffer_size: int = 16
    per_prompt_stat_tracking_min_count: int = 16
    async_reward_computation: bool = False
    max_workers: int = 2
    train_timesteps_per_pass: int = 1

    _ranges: ClassVar = {
        **DiffusionConfig._ranges,
        "sample_eta": ABOVE_0,
        "train_adv_clip_max": ABOVE_0,
        "train_clip_range": ABOVE_0,
        "train_timestep_fraction": ("in (0, 1]", lambda x: 0 < x <= 1),
    }
    _from_0: ClassVar = (*DiffusionConfig._from_0, "per_prompt_stat_tracking_min_count")

    @property
    def trained_steps(self) -> int:
        """Denoising steps of each path that are trained on."""
        return int(self.sample_num_steps * self.train_timestep_fraction)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.trained_steps:
            self.refuse(
                "train_timestep_fraction",
                f"of sample_num_steps={self.sample_num_steps} it leaves no step to train on",
            )
        least = self.per_prompt_stat_tracking_min_count
        if self.per_prompt_stat_tracking and self.per_prompt_stat_tracking_buffer_size < least:
            self.refuse(
                "per_prompt_stat_tracking_buffer_size",
                f"no prompt would reach per_prompt_stat_tracking_min_count={least}, and all would "
                "be compared with the batch: raise the first or lower the second",
            )
        if self.trained_steps % self.train_timesteps_per_pass:
            self.refuse(
                "train_timesteps_per_pass",
                f"it must divide the {self.trained_steps} steps of an image that are trained on",
            )
