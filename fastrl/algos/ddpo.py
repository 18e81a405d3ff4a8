"""Denoising diffusion policy optimisation (Black et al., arXiv 2305.13301).

What is collected: `DDPOTrainer._generate_samples`. What is minimised: `ddpo_loss`.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from fastrl.algos.ddpo_config import DDPOConfig
from fastrl.ops.denoising import guide
from fastrl.train.agreement import agreed
from fastrl.train.diffusion import DiffusionTrainer
from fastrl.train.prompt_statistics import PerPromptStatTracker

Samples = dict[str, torch.Tensor]
_PATHS = ("latents", "timesteps", "next_latents", "log_probs")  # what has a dimension of steps


def ddpo_loss(advantages: torch.Tensor, clip_range: float, ratio: torch.Tensor) -> torch.Tensor:
    """DDPO-IS with clipping (section 4.3): mean max(−A·ratio, −A·clamp(ratio, 1 ± clip_range)).

    Args:
        advantages: (B,) of the images.
        clip_range: how far the ratio may leave 1 and still pay.
        ratio: (B,) new to old density of one denoising step.
    """
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped).mean()


class DDPOTrainer(DiffusionTrainer):
    """Draws images, scores them, and raises the density of the steps that led to good ones.

    Args:
        config: a `DDPOConfig`.
        reward_function: (images (B, 3, H, W) in [0, 1], prompts, metadata) -> (rewards (B,),
            metadata).
        prompt_function: () -> (prompt, metadata).
        sd_pipeline: a `DDPOStableDiffusionPipeline`.
        image_samples_hook: called once per epoch by the main process with a list of [images,
            prompts, metadata, rewards, reward metadata] of its batches, the step and a tracker.

    `log_history` keeps what trackers are sent.

    Raises:
        ValueError: an argument of the wrong type, or sizes of batches that do not fit.
    """

    _tag_names = ("trl", "ddpo")
    _title = "DDPO"
    config: DDPOConfig

    def _set_up(self, config: Any) -> int:
        """Check the config, make the tracker and the threads; returns passes of a sample."""
        if not isinstance(config, DDPOConfig):
            raise ValueError(f"config must be a DDPOConfig, got {type(config).__name__}")
        self.num_train_timesteps = config.trained_steps
        if config.per_prompt_stat_tracking:
            self.stat_tracker = PerPromptStatTracker(
                config.per_prompt_stat_tracking_buffer_size,
                config.per_prompt_stat_tracking_min_count,
            )
        self._scoring: dict[int, Any] = {}  # id of images -> future
        if config.async_reward_computation:
            self.executor = ThreadPoolExecutor(max_workers=config.max_workers)
        return self.num_train_timesteps // config.train_timesteps_per_pass

    def _config_check(self) -> tuple[bool, str]:
        config, ranks = self.config, self.accelerator.num_processes
        drawn, trained = config.sample_batch_size, config.train_batch_size
        if drawn % trained:
            return False, (
                f"sample_batch_size={drawn} must be a multiple of train_batch_size={trained}"
            )
        samples = drawn * ranks * config.sample_num_batches_per_epoch
        step = trained * ranks * config.train_gradient_accumulation_steps
        if samples % step:
            return False, (
                f"the {samples} samples of an epoch (sample_batch_size · processes · "
                f"sample_num_batches_per_epoch) must be a multiple of the {step} of an optimizer "
                "step (train_batch_size · processes · train_gradient_accumulation_steps)"
            )
        return True, ""

    def step(self, epoch: int, global_step: int) -> int:
        """Sample, score and train once; as `DiffusionTrainer.step`.

        Raises:
            ValueError: rewards or log-probabilities that are no finite numbers of the right
                number, before anything is trained.
            FloatingPointError: a loss or gradient that is not finite; that step is not taken.
        """
        config = self.config
        with agreed(self.accelerator, "drawing and scoring images"):
            batches, pairs = self._generate_samples(
                config.sample_num_batches_per_epoch, config.sample_batch_size
            )
            samples = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
            _check_densities(samples["log_probs"])
            rewards, details = self.compute_rewards(pairs, config.async_reward_computation)
        for pair, reward, detail in zip(pairs, rewards, details, strict=True):
            pair.extend([reward, detail])
        self._show_images(pairs, global_step)
        scores = self.accelerator.gather(torch.cat(rewards)).float().cpu().numpy()
        self._log(
            {
                "reward": scores,
                "epoch": epoch,
                "reward_mean": float(scores.mean()),
                "reward_std": float(scores.std()),
            },
            global_step,
        )
        samples["advantages"] = self._advantages(samples.pop("prompt_ids"), scores)
        for inner_epoch in range(config.train_num_inner_epochs):
            samples = self._shuffled(samples)
            self.sd_pipeline.unet.train()
            global_step = self._train_batched_samples(
                inner_epoch, epoch, global_step, self._batched(samples)
            )
        self._save_state(epoch, global_step)
        return global_step

    @torch.no_grad()
    def _generate_samples(
        self, iterations: int, batch_size: int
    ) -> tuple[list[Samples], list[list[Any]]]:
        """Per iteration a batch of paths, and its [images, prompts, metadata].

        A batch holds `prompt_ids` (B, L), `prompt_embeds` and `negative_prompt_embeds` (B, L, D),
        `timesteps` and `log_probs` (B, T), `latents` and `next_latents` (B, T, C, h, w).
        """
        config, pipeline = self.config, self.sd_pipeline
        pipeline.unet.eval()
        self._scoring.clear()  # an epoch that failed may have left some
        negative = self.neg_prompt_embed.repeat(batch_size, 1, 1)
        samples, pairs = [], []
        for _ in range(iterations):
            prompts, metadata = self._prompts(batch_size)
            ids, embeds = self._embed(prompts)
            with self.autocast():
                drawn = pipeline(
                    prompt_embeds=embeds,
                    negative_prompt_embeds=negative,
                    num_inference_steps=config.sample_num_steps,
                    guidance_scale=config.sample_guidance_scale,
                    eta=config.sample_eta,
                    output_type="pt",
                )
            path = torch.stack(drawn.latents, dim=1)
            samples.append(
                {
                    "prompt_ids": ids,
                    "prompt_embeds": embeds,
                    "timesteps": pipeline.scheduler.timesteps.repeat(batch_size, 1),
                    "latents": path[:, :-1],
                    "next_latents": path[:, 1:],
                    "log_probs": torch.stack(drawn.log_probs, dim=1),
                    "negative_prompt_embeds": negative,
                }
            )
            pairs.append([drawn.images, prompts, metadata])
            if config.async_reward_computation:
                self._scoring[id(drawn.images)] = self.executor.submit(self.reward_fn, *pairs[-1])
        return samples, pairs

    def compute_rewards(
        self, prompt_image_pairs: list[list[Any]], is_async: bool = False
    ) -> tuple[tuple[torch.Tensor, ...], tuple[Any, ...]]:
        """(rewards (B,), metadata) of each [images, prompts, metadata]; in threads if `is_async`.

        Raises:
            ValueError: the reward function returns something else.
        """
        if is_async:
            futures = [
                self._scoring.pop(id(pair[0]), None) or self.executor.submit(self.reward_fn, *pair)
                for pair in prompt_image_pairs
            ]
            found = [future.result() for future in futures]
        else:
            found = [self.reward_fn(*pair) for pair in prompt_image_pairs]
        scored = [
            self._checked_rewards(one, len(pair[0]))
            for one, pair in zip(found, prompt_image_pairs, strict=True)
        ]
        return tuple(rewards for rewards, _ in scored), tuple(details for _, details in scored)

    def _checked_rewards(self, found: Any, number: int) -> tuple[torch.Tensor, Any]:
        rewards, details = self._rewards_and_details(found, number)
        if not torch.isfinite(rewards).all():
            raise ValueError(f"reward_function returned a reward that is not finite: {rewards}")
        return rewards.detach(), details

    def _advantages(self, prompt_ids: torch.Tensor, rewards: np.ndarray) -> torch.Tensor:
        """Advantages (B,) of this process's images from the rewards of all."""
        if self.stat_tracker:
            ids = self.accelerator.gather(prompt_ids).cpu()
            prompts = self.sd_pipeline.tokenizer.batch_decode(ids, skip_special_tokens=True)
            advantages = self.stat_tracker.update(prompts, rewards.tolist())
        else:
            advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
        ranks = torch.as_tensor(advantages).reshape(self.accelerator.num_processes, -1)
        return ranks[self.accelerator.process_index].to(self.accelerator.device)

    def _shuffled(self, samples: Samples) -> Samples:
        """Rows in a new order, and the steps of each row in one of its own."""
        device = self.accelerator.device
        number, steps = samples["timesteps"].shape
        order = torch.randperm(number, device=device)
        along = torch.stack([torch.randperm(steps, device=device) for _ in range(number)])
        return {
            name: value[order[:, None], along] if name in _PATHS else value[order]
            for name, value in samples.items()
        }

    def _batched(self, samples: Samples) -> list[Samples]:
        """The samples in batches of `train_batch_size`."""
        size = self.config.train_batch_size
        starts = range(0, len(samples["timesteps"]), size)
        return [{name: value[i : i + size] for name, value in samples.items()} for i in starts]

    def _train_batched_samples(
        self, inner_epoch: int, epoch: int, global_step: int, batched_samples: list[Samples]
    ) -> int:
        """Train on each batch, some steps at a time; returns the optimizer steps after."""
        info, together = defaultdict(list), self.config.train_timesteps_per_pass
        for sample in batched_samples:
            advantages = sample["advantages"].repeat_interleave(together)
            embeds = sample["prompt_embeds"].repeat_interleave(together, dim=0)
            if self._guides:
                negative = sample["negative_prompt_embeds"].repeat_interleave(together, dim=0)
                embeds = torch.cat([negative, embeds])
            for j in range(0, self.num_train_timesteps, together):
                with self.accelerator.accumulate(self.sd_pipeline.unet):
                    latents, steps, after, logp = (
                        sample[name][:, j : j + together].flatten(0, 1) for name in _PATHS
                    )
                    loss, approx_kl, clipfrac = self.calculate_loss(
                        latents, steps, after, logp, advantages, embeds
                    )
                    info["approx_kl"].append(approx_kl.detach())
                    info["clipfrac"].append(clipfrac.detach())
                    info["loss"].append(loss.detach())
                    self._descend(loss, watched=loss)
                if self.accelerator.sync_gradients:
                    self._log_step(info, {"epoch": epoch, "inner_epoch": inner_epoch}, global_step)
                    global_step += 1
                    info = defaultdict(list)
        return global_step

    @property
    def _guides(self) -> bool:
        """Whether there is classifier-free guidance in training."""
        return self.config.train_cfg and self.config.sample_guidance_scale > 1.0

    def calculate_loss(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        next_latents: torch.Tensor,
        log_probs: torch.Tensor,
        advantages: torch.Tensor,
        embeds: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(loss, approximate KL, share of clipped ratios) of one denoising step of each row.

        Args:
            latents, next_latents: (B, C, h, w) before and after the step.
            timesteps, log_probs, advantages: (B,)
            embeds: (B, L, D), or with guidance (2B, L, D), the negative prompts' in front.
        """
        config = self.config
        with self.autocast():
            twice = 2 if len(embeds) == 2 * len(latents) else 1
            inputs = torch.cat([latents] * twice), torch.cat([timesteps] * twice), embeds
            output = self.sd_pipeline.unet(*inputs).sample
            if twice == 2:
                without, along = output.chunk(2)
                output = guide(without, along, config.sample_guidance_scale)
            log_prob = self.sd_pipeline.scheduler_step(
                output, timesteps, latents, eta=config.sample_eta, prev_sample=next_latents
            ).log_probs
        advantages = advantages.clamp(-config.train_adv_clip_max, config.train_adv_clip_max)
        ratio = torch.exp(log_prob - log_probs)
        loss = self.loss(advantages, config.train_clip_range, ratio)
        approx_kl = 0.5 * (log_prob - log_probs).square().mean()
        clipfrac = ((ratio - 1.0).abs() > config.train_clip_range).float().mean()
        return loss, approx_kl, clipfrac

    def loss(
        self, advantages: torch.Tensor, clip_range: float, ratio: torch.Tensor
    ) -> torch.Tensor:
        """As `ddpo_loss`."""
        return ddpo_loss(advantages, clip_range, ratio)


def _check_densities(log_probs: torch.Tensor) -> None:
    if not torch.isfinite(log_probs).all():
        raise ValueError(
            "the pipeline's log_probs are not all finite: a step without noise has no density, so "
            "sample_eta must be above 0 and the scheduler's steps_offset at least 1; or the UNet "
            "answers with NaN"
        )
