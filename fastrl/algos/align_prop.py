"""AlignProp: a reward's gradient through the denoising steps (Prabhudesai et al., 2310.03739)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from fastrl.algos.align_prop_config import AlignPropConfig
from fastrl.train.agreement import agreed
from fastrl.train.diffusion import DiffusionTrainer

_BEST = 10.0  # the top of the aesthetic scale; a constant of the loss


class AlignPropTrainer(DiffusionTrainer):
    """Draws images with gradients, scores them, and follows the gradient of their rewards.

    Args:
        config: an `AlignPropConfig`.
        reward_function: (images (B, 3, H, W) in [0, 1], prompts, metadata) -> (rewards (B,),
            metadata), the rewards differentiable in the images.
        prompt_function: () -> (prompt, metadata).
        sd_pipeline: a `DDPOStableDiffusionPipeline` with `rgb_with_grad`.
        image_samples_hook: called by the main process with a dict of its last images, prompts,
            prompt_metadata and rewards, the step and a tracker.

    `log_history` keeps what trackers are sent.

    Raises:
        ValueError: an argument of the wrong type.
    """

    _tag_names = ("trl", "alignprop")
    _title = "AlignProp"
    config: AlignPropConfig

    def _set_up(self, config: Any) -> int:
        """Check config and pipeline; each sample has one backward pass."""
        if not isinstance(config, AlignPropConfig):
            raise ValueError(f"config must be an AlignPropConfig, got {type(config).__name__}")
        if not hasattr(self.sd_pipeline, "rgb_with_grad"):
            raise ValueError(
                "sd_pipeline has no rgb_with_grad, which draws images with gradients: give a "
                f"DefaultDDPOStableDiffusionPipeline, not a {type(self.sd_pipeline).__name__}"
            )
        return 1

    def step(self, epoch: int, global_step: int) -> int:
        """One optimizer step on `train_gradient_accumulation_steps` batches of images.

        Arguments and result are those of `DiffusionTrainer.step`.

        Raises:
            ValueError: rewards that are not one for each image, or carry no gradient.
            FloatingPointError: a loss or gradient that is not finite; no weight has moved.
        """
        info = defaultdict(list)
        self.sd_pipeline.unet.train()
        for _ in range(self.config.train_gradient_accumulation_steps):
            with (
                self.accelerator.accumulate(self.sd_pipeline.unet),
                self.autocast(),
                torch.enable_grad(),
            ):
                with agreed(self.accelerator, "drawing and scoring images"):
                    drawn = self._generate_samples(self.config.train_batch_size)
                    rewards = drawn["rewards"] = self.compute_rewards(drawn)
                loss = self.calculate_loss(rewards)
                if not loss.requires_grad:  # the draws let no denoising step have gradients
                    loss = loss + sum(0.0 * weight.sum() for weight in self._descend.parameters)
                seen = self.accelerator.gather(rewards.detach()).float()
                self._descend(loss, watched=loss)
            info["reward_mean"].append(seen.mean())
            info["reward_std"].append(seen.std(correction=0))
            info["loss"].append(loss.detach())
        self._log_step(info, {"epoch": epoch}, global_step)
        global_step += 1
        if global_step % self.config.log_image_freq == 0:
            self._show_images(drawn, global_step)
        self._save_state(epoch, global_step)
        return global_step

    def compute_rewards(self, prompt_image_pairs: dict[str, Any]) -> torch.Tensor:
        """Rewards (B,) of `images`, `prompts` and `prompt_metadata`.

        Raises:
            ValueError: the reward function returns something else, or rewards without a gradient
                for images that have one.
        """
        images = prompt_image_pairs["images"]
        found = self.reward_fn(
            images, prompt_image_pairs["prompts"], prompt_image_pairs["prompt_metadata"]
        )
        rewards, _ = self._rewards_and_details(found, len(images))
        if images.requires_grad and not rewards.requires_grad:
            raise ValueError(
                "reward_function returned rewards without a gradient: AlignProp follows it, so "
                "the rewards must be computed from the images by differentiable operations, "
                "outside torch.no_grad(); DDPOTrainer takes any rewards"
            )
        return rewards

    def calculate_loss(self, rewards: torch.Tensor) -> torch.Tensor:
        """10 − the mean of rewards (B,)."""
        return _BEST - rewards.mean()

    def _generate_samples(
        self, batch_size: int, with_grad: bool = True, prompts: Any = None
    ) -> dict[str, Any]:
        """`images` (B, 3, H, W), `prompts` and `prompt_metadata`.

        Args:
            batch_size: images.
            with_grad: whether the images carry gradients.
            prompts: as many; None: of the prompt function.
        """
        config = self.config
        metadata: tuple[Any, ...] = tuple({} for _ in range(batch_size))
        if prompts is None:
            prompts, metadata = self._prompts(batch_size)
        settings: dict[str, Any] = {
            "prompt_embeds": self._embed(prompts)[1],
            "negative_prompt_embeds": self.neg_prompt_embed.repeat(batch_size, 1, 1),
            "num_inference_steps": config.sample_num_steps,
            "guidance_scale": config.sample_guidance_scale,
            "eta": config.sample_eta,
            "output_type": "pt",
        }
        if not with_grad:
            drawn = self.sd_pipeline(**settings)
        else:
            drawn = self.sd_pipeline.rgb_with_grad(
                truncated_backprop_rand=config.truncated_backprop_rand,
                truncated_backprop_timestep=config.truncated_backprop_timestep,
                truncated_rand_backprop_minmax=config.truncated_rand_backprop_minmax,
                **settings,
            )
        return {"images": drawn.images, "prompts": prompts, "prompt_metadata": metadata}
