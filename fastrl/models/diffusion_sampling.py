"""Images drawn from a Stable Diffusion pipeline, each denoising step with its log-probability."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from fastrl.ops.classic import randn_tensor
from fastrl.ops.denoising import (
    ddim_transition,
    gaussian_logp,
    guide,
    like_batch,
    split_prediction,
)

# (number of the step, latents (B, C, H, W), timestep, embeddings) -> the UNet's output
_Predict = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class DDPOPipelineOutput:
    """Images, and the path of latents that led to them.

    Attributes:
        images: (B, 3, H, W) in [0, 1] with `output_type="pt"`.
        latents: one more than there are steps, each (B, C, h, w).
        log_probs: one per step, each (B,), averaged over C, h and w.
    """

    images: Any
    latents: list[torch.Tensor]
    log_probs: list[torch.Tensor]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.images, self.latents, self.log_probs))


@dataclass
class DDPOSchedulerOutput:
    """One denoising step.

    Attributes:
        latents: (B, C, h, w) after the step.
        log_probs: (B,) of these latents, averaged over C, h and w.
    """

    latents: torch.Tensor
    log_probs: torch.Tensor


@dataclass
class PipelineCall:
    """What a pipeline is called with, in TRL's order.

    Attributes:
        prompt: one or several; or `prompt_embeds` (B, L, D), and with guidance
            `negative_prompt_embeds` of the same shape.
        height, width: pixels; None: the size that the UNet was trained on.
        num_inference_steps: denoising steps.
        guidance_scale: of classifier-free guidance; none up to 1.
        eta: noise of a step; 0 has none, and then no log-probability (NaN).
        generator: draws start and steps; None: torch's global one.
        latents: (B, C, h, w) to start from.
        output_type: "pt", "np", "pil" or "latent".
        return_dict: False for a tuple.
        callback: called as (step, timestep, latents) every `callback_steps` steps.
        guidance_rescale: arXiv 2305.08891, section 3.4.
    """

    prompt: str | list[str] | None = None
    height: int | None = None
    width: int | None = None
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    negative_prompt: str | list[str] | None = None
    num_images_per_prompt: int = 1
    eta: float = 0.0
    generator: torch.Generator | list[torch.Generator] | None = None
    latents: torch.Tensor | None = None
    prompt_embeds: torch.Tensor | None = None
    negative_prompt_embeds: torch.Tensor | None = None
    output_type: str = "pil"
    return_dict: bool = True
    callback: Callable[[int, Any, torch.Tensor], None] | None = None
    callback_steps: int = 1
    cross_attention_kwargs: dict[str, Any] | None = None
    guidance_rescale: float = 0.0

    @property
    def guided(self) -> bool:
        """Whether there is classifier-free guidance."""
        return self.guidance_scale > 1.0

    def rows(self) -> int:
        """Images that are asked for."""
        if isinstance(self.prompt, str):
            prompts = 1
        elif self.prompt is not None:
            prompts = len(self.prompt)
        else:
            assert self.prompt_embeds is not None  # the pipeline's check_inputs has seen to it
            prompts = len(self.prompt_embeds)
        return prompts * self.num_images_per_prompt


def scheduler_step(
    self: Any,
    model_output: torch.Tensor,
    timestep: Any,
    sample: torch.Tensor,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
    generator: Any = None,
    prev_sample: torch.Tensor | None = None,
) -> DDPOSchedulerOutput:
    """One DDIM step, or the log-probability of one that was taken.

    Args:
        self: a diffusers `DDIMScheduler` whose timesteps are set.
        model_output: (B, C, h, w) the (guided) output of the model.
        timestep: of the step, one for all rows or (B,).
        sample: (B, C, h, w) before the step.
        eta: noise of the step.
        use_clipped_model_output: noise follows from the clipped clean sample.
        generator: draws the noise.
        prev_sample: (B, C, h, w) after the step, to be scored; None: it is drawn.

    The density is computed in fp32, of the latents as they are returned: in the dtype of `sample`.

    Raises:
        ValueError: timesteps are not set, or both generator and prev_sample are given.
    """
    if self.num_inference_steps is None:
        raise ValueError("the scheduler has no timesteps yet: call set_timesteps(number) first")
    if prev_sample is not None and generator is not None:
        raise ValueError(
            "prev_sample is scored and a generator draws: give prev_sample or generator, not both"
        )
    mean, deviation = _transition(
        self, model_output, timestep, sample, eta, use_clipped_model_output
    )
    if prev_sample is None:
        noise = randn_tensor(
            model_output.shape,
            generator=generator,
            device=model_output.device,
            dtype=model_output.dtype,
        )
        prev_sample = (mean + deviation * noise).to(sample.dtype)
    logp = gaussian_logp(prev_sample.to(mean.dtype), mean, deviation)
    return DDPOSchedulerOutput(prev_sample.to(sample.dtype), logp)


def _transition(
    scheduler: Any,
    output: torch.Tensor,
    timestep: Any,
    sample: torch.Tensor,
    eta: float,
    from_clipped: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (B, C, h, w) and deviation, broadcastable to it, of the next sample; fp32."""
    config = scheduler.config
    scheduler.alphas_cumprod = alphas = scheduler.alphas_cumprod.to(sample.device)
    step = torch.as_tensor(timestep, device=sample.device, dtype=torch.int64)
    stride = config.num_train_timesteps // scheduler.num_inference_steps
    alpha = like_batch(alphas[step], sample)
    alpha_next = like_batch(alphas[(step - stride).clamp(min=0)], sample)
    output, sample = output.to(alpha.dtype), sample.to(alpha.dtype)
    clean, noise = split_prediction(output, sample, alpha, config.prediction_type)
    if config.thresholding:
        clean = scheduler._threshold_sample(clean)
    elif config.clip_sample:
        clean = clean.clamp(-config.clip_sample_range, config.clip_sample_range)
    if from_clipped:
        noise = split_prediction(clean, sample, alpha, "sample")[1]
    return ddim_transition(clean, noise, alpha, alpha_next, eta)


def pipeline_step(self: Any, *args: Any, **settings: Any) -> Any:
    """Images with their latents and log-probabilities, without gradients.

    Args:
        self: a diffusers `StableDiffusionPipeline` with a DDIM scheduler.
        args, settings: the fields of `PipelineCall`.

    Returns:
        A `DDPOPipelineOutput`, or with `return_dict=False` the tuple of its fields.
    """
    call = PipelineCall(*args, **settings)

    def predict(_: int, *inputs: Any) -> torch.Tensor:
        return _unet(self, call, *inputs)

    with torch.no_grad():
        return _draw(self, call, predict)


def pipeline_step_with_grad(
    pipeline: Any,
    prompt: str | list[str] | None = None,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    truncated_backprop: bool = True,
    truncated_backprop_rand: bool = True,
    gradient_checkpoint: bool = True,
    truncated_backprop_timestep: int = 49,
    truncated_rand_backprop_minmax: tuple[int, int] = (0, 50),
    **settings: Any,
) -> Any:
    """Images that carry gradients to the UNet (AlignProp, arXiv 2310.03739, section 4).

    Args:
        truncated_backprop: only some steps get gradients.
        truncated_backprop_rand: each step with a probability that grows along the way: step i if
            a whole number drawn from `truncated_rand_backprop_minmax` is at most i.
        gradient_checkpoint: recompute each UNet pass in the backward pass.
        truncated_backprop_timestep: without `truncated_backprop_rand`, the first step that gets
            gradients.
        settings: the other fields of `PipelineCall`.

    Returns:
        As `pipeline_step`. A step that gets no gradient is computed without.
    """
    call = PipelineCall(prompt, height, width, num_inference_steps, guidance_scale, **settings)

    def predict(number: int, *inputs: Any) -> torch.Tensor:
        first = 0
        if truncated_backprop:
            first = truncated_backprop_timestep
            if truncated_backprop_rand:
                first = random.randint(*truncated_rand_backprop_minmax)
        with torch.no_grad() if number < first else nullcontext():
            if not gradient_checkpoint or number < first:
                return _unet(pipeline, call, *inputs)
            return checkpoint(_unet, pipeline, call, *inputs, use_reentrant=False)

    return _draw(pipeline, call, predict)


def _unet(
    pipeline: Any, call: PipelineCall, latents: torch.Tensor, step: torch.Tensor, embeds: Any
) -> torch.Tensor:
    return pipeline.unet(
        latents,
        step,
        encoder_hidden_states=embeds,
        cross_attention_kwargs=call.cross_attention_kwargs,
        return_dict=False,
    )[0]


def _draw(pipeline: Any, call: PipelineCall, predict: _Predict) -> Any:
    """Denoise from start to end, then decode."""
    with torch.no_grad():
        embeds, latents = _start(pipeline, call)
    path, logp = [latents], []
    scheduler, steps = pipeline.scheduler, pipeline.scheduler.timesteps
    with pipeline.progress_bar(total=call.num_inference_steps) as bar:
        for number, step in enumerate(steps):
            inputs = torch.cat([latents, latents]) if call.guided else latents
            inputs = scheduler.scale_model_input(inputs, step)
            output = predict(number, inputs, step, embeds)
            if call.guided:
                without, along = output.chunk(2)
                output = guide(without, along, call.guidance_scale, call.guidance_rescale)
            taken = scheduler_step(
                scheduler, output, step, latents, call.eta, generator=call.generator
            )
            latents = taken.latents
            path.append(latents)
            logp.append(taken.log_probs)
            bar.update()
            if call.callback is not None and number % call.callback_steps == 0:
                call.callback(number, step, latents)
    images = _decoded(pipeline, call, latents, embeds.dtype)
    found = DDPOPipelineOutput(images, path, logp)
    return found if call.return_dict else tuple(found)


def _start(pipeline: Any, call: PipelineCall) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (with guidance the negative prompts' in front) and the first latents."""
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    height, width = call.height or size, call.width or size
    pipeline.check_inputs(
        call.prompt,
        height,
        width,
        call.callback_steps,
        call.negative_prompt,
        call.prompt_embeds,
        call.negative_prompt_embeds,
    )
    device = pipeline._execution_device
    embeds, negative = pipeline.encode_prompt(
        call.prompt,
        device,
        call.num_images_per_prompt,
        call.guided,
        call.negative_prompt,
        prompt_embeds=call.prompt_embeds,
        negative_prompt_embeds=call.negative_prompt_embeds,
        lora_scale=(call.cross_attention_kwargs or {}).get("scale"),
    )
    if call.guided:
        embeds = torch.cat([negative, embeds])
    pipeline.scheduler.set_timesteps(call.num_inference_steps, device=device)
    channels = pipeline.unet.config.in_channels
    latents = pipeline.prepare_latents(
        call.rows(), channels, height, width, embeds.dtype, device, call.generator, call.latents
    )
    return embeds, latents


def _decoded(pipeline: Any, call: PipelineCall, latents: torch.Tensor, dtype: torch.dtype) -> Any:
    """The images of the last latents, as `output_type` says."""
    if call.output_type == "latent":
        images, unsafe = latents, None
    else:
        scaled = latents / pipeline.vae.config.scaling_factor
        images = pipeline.vae.decode(scaled, return_dict=False)[0]
        images, unsafe = pipeline.run_safety_checker(images, latents.device, dtype)
    plain = [True] * len(images) if unsafe is None else [not one for one in unsafe]
    images = pipeline.image_processor.postprocess(
        images, output_type=call.output_type, do_denormalize=plain
    )
    pipeline.maybe_free_model_hooks()
    return images
