"""Stable Diffusion pipelines for DDPO and AlignProp: the interface, and the one of diffusers."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

from fastrl.models.diffusion_sampling import (
    DDPOPipelineOutput,
    DDPOSchedulerOutput,
    pipeline_step,
    pipeline_step_with_grad,
    scheduler_step,
)

LORA_FILE = "pytorch_lora_weights.safetensors"
_ADAPTER = "default"
_TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]  # the UNet's attention


class DDPOStableDiffusionPipeline:
    """What `DDPOTrainer` asks of a pipeline. Subclasses give every part; nothing is inherited."""

    def __call__(self, *args: Any, **kwargs: Any) -> DDPOPipelineOutput:
        """Images from `prompt_embeds`, with the latents and log-probabilities of every step."""
        raise NotImplementedError

    def scheduler_step(self, *args: Any, **kwargs: Any) -> DDPOSchedulerOutput:
        """Score `prev_sample` as the step after `sample`, given the model's output."""
        raise NotImplementedError

    def rgb_with_grad(self, *args: Any, **kwargs: Any) -> DDPOPipelineOutput:
        """Images that carry gradients; AlignProp alone asks for them."""
        raise NotImplementedError

    @property
    def unet(self) -> Any:
        """The denoiser: called as (latents, timesteps, embeddings), answers with `.sample`."""
        raise NotImplementedError

    @property
    def vae(self) -> Any:
        """The autoencoder between images and latents."""
        raise NotImplementedError

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of prompts."""
        raise NotImplementedError

    @property
    def scheduler(self) -> Any:
        """The noise schedule; `scheduler.timesteps` are those of the last call."""
        raise NotImplementedError

    @property
    def text_encoder(self) -> Any:
        """Token ids to embeddings, the first of what it answers."""
        raise NotImplementedError

    @property
    def autocast(self) -> Any:
        """A context for sampling and training, or None for accelerate's autocast."""
        raise NotImplementedError

    def set_progress_bar_config(self, *args: Any, **kwargs: Any) -> None:
        """Settings of the bar that is shown while sampling."""
        raise NotImplementedError

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Write the whole pipeline to a folder."""
        raise NotImplementedError

    def get_trainable_layers(self, *args: Any, **kwargs: Any) -> Any:
        """The module that is trained, as far as its parameters want gradients, or parameters."""
        raise NotImplementedError

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Write what is trained: (models, weights, folder)."""
        raise NotImplementedError

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Read what `save_checkpoint` wrote: (models, folder)."""
        raise NotImplementedError


class DefaultDDPOStableDiffusionPipeline(DDPOStableDiffusionPipeline):
    """A `StableDiffusionPipeline` of diffusers, whole or with LoRA in the UNet's attention.

    Args:
        pretrained_model_name: a folder, or a name on the hub. LoRA weights that lie there
            (`pytorch_lora_weights.safetensors`) are loaded and trained further.
        pretrained_model_revision: a branch, a tag or a commit.
        use_lora: train LoRA of rank 4 rather than the UNet.

    The scheduler becomes a `DDIMScheduler`, and there is no safety checker.

    Raises:
        ImportError: without the package diffusers, or peft for LoRA.
    """

    def __init__(
        self,
        pretrained_model_name: str,
        *,
        pretrained_model_revision: str = "main",
        use_lora: bool = True,
    ) -> None:
        _require("diffusers")
        if use_lora:
            _require("peft")
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        self.pretrained_model = pretrained_model_name
        self.pretrained_revision = pretrained_model_revision
        self.sd_pipeline = StableDiffusionPipeline.from_pretrained(
            pretrained_model_name, revision=pretrained_model_revision
        )
        self.use_lora = self._load_adapter() or use_lora
        self.sd_pipeline.scheduler = DDIMScheduler.from_config(self.sd_pipeline.scheduler.config)
        self.sd_pipeline.safety_checker = None
        self.sd_pipeline.vae.requires_grad_(False)
        self.sd_pipeline.text_encoder.requires_grad_(False)
        self.sd_pipeline.unet.requires_grad_(not self.use_lora)

    def _load_adapter(self) -> bool:
        """Load the LoRA weights beside the pipeline; whether there are any."""
        file = {"weight_name": LORA_FILE, "revision": self.pretrained_revision}
        try:
            self.sd_pipeline.lora_state_dict(self.pretrained_model, **file)
        except OSError:  # what diffusers and the hub raise for a file that is not there
            return False
        _require("peft")
        self.sd_pipeline.load_lora_weights(self.pretrained_model, adapter_name=_ADAPTER, **file)
        return True

    def __call__(self, *args: Any, **kwargs: Any) -> DDPOPipelineOutput:
        """As `pipeline_step`."""
        return pipeline_step(self.sd_pipeline, *args, **kwargs)

    def rgb_with_grad(self, *args: Any, **kwargs: Any) -> DDPOPipelineOutput:
        """As `pipeline_step_with_grad`."""
        return pipeline_step_with_grad(self.sd_pipeline, *args, **kwargs)

    def scheduler_step(self, *args: Any, **kwargs: Any) -> DDPOSchedulerOutput:
        """As the function `scheduler_step`, with this pipeline's scheduler."""
        return scheduler_step(self.sd_pipeline.scheduler, *args, **kwargs)

    @property
    def unet(self) -> Any:
        """The UNet of diffusers."""
        return self.sd_pipeline.unet

    @property
    def vae(self) -> Any:
        """The autoencoder of diffusers."""
        return self.sd_pipeline.vae

    @property
    def tokenizer(self) -> Any:
        """CLIP's tokenizer."""
        return self.sd_pipeline.tokenizer

    @property
    def scheduler(self) -> Any:
        """The DDIM scheduler."""
        return self.sd_pipeline.scheduler

    @property
    def text_encoder(self) -> Any:
        """CLIP's text model."""
        return self.sd_pipeline.text_encoder

    @property
    def autocast(self) -> Any:
        """None without LoRA: accelerate's autocast."""
        return contextlib.nullcontext if self.use_lora else None

    def set_progress_bar_config(self, *args: Any, **kwargs: Any) -> None:
        """As the pipeline of diffusers takes them."""
        self.sd_pipeline.set_progress_bar_config(*args, **kwargs)

    def get_trainable_layers(self) -> Any:
        """The UNet; with LoRA its adapter alone wants gradients, and is in fp32."""
        unet = self.sd_pipeline.unet
        if not self.use_lora:
            return unet
        if _ADAPTER not in getattr(unet, "peft_config", {}):
            from peft import LoraConfig

            unet.add_adapter(
                LoraConfig(
                    r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=_TARGETS
                ),
                _ADAPTER,
            )
        for name, parameter in unet.named_parameters():
            if f".{_ADAPTER}." in name:
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
        return unet

    def save_pretrained(self, output_dir: str | Path) -> None:
        """Write the pipeline, and with LoRA its weights beside the UNet as it was before.

        `DefaultDDPOStableDiffusionPipeline(output_dir)` finds both.
        """
        self.sd_pipeline.save_pretrained(str(output_dir))
        unet = self.sd_pipeline.unet
        if not _adapted(unet):
            return
        self._save_adapter(unet, output_dir)
        bare = {
            name.replace(".base_layer.", "."): weight
            for name, weight in unet.state_dict().items()
            if ".lora_" not in name
        }
        with torch.device("meta"):
            plain = type(unet).from_config(unet.config)
        plain.load_state_dict(bare, assign=True)
        plain.save_pretrained(str(Path(output_dir) / "unet"))

    def save_checkpoint(self, models: list[Any], weights: list[Any], output_dir: str) -> None:
        """Write what is trained; `weights` is not read.

        Raises:
            ValueError: it is not one UNet, with an adapter if `use_lora`.
        """
        unet = self._trained(models)
        if self.use_lora:
            self._save_adapter(unet, output_dir)
        else:
            unet.save_pretrained(str(Path(output_dir) / "unet"))

    def load_checkpoint(self, models: list[Any], input_dir: str) -> None:
        """Read what `save_checkpoint` wrote into the one UNet of `models`.

        Raises:
            ValueError: it is not one UNet, with an adapter if `use_lora`; or the checkpoint is of
                other weights.
        """
        unet = self._trained(models)
        if not self.use_lora:
            read = type(unet).from_pretrained(input_dir, subfolder="unet")
            unet.register_to_config(**read.config)
            unet.load_state_dict(read.state_dict())
            return
        from diffusers.utils import convert_unet_state_dict_to_peft
        from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

        found, _ = self.sd_pipeline.lora_state_dict(input_dir, weight_name=LORA_FILE)
        ours = {name.removeprefix("unet."): weight for name, weight in found.items()}
        ours = convert_unet_state_dict_to_peft(ours)
        missing = get_peft_model_state_dict(unet, adapter_name=_ADAPTER).keys() ^ ours.keys()
        if missing:
            raise ValueError(
                f"{input_dir}: its LoRA weights are not those of this UNet, for example "
                f"{sorted(missing)[0]}"
            )
        set_peft_model_state_dict(unet, ours, adapter_name=_ADAPTER)

    def _save_adapter(self, unet: Any, output_dir: str | Path) -> None:
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

        weights = get_peft_model_state_dict(unet, adapter_name=_ADAPTER)
        self.sd_pipeline.save_lora_weights(
            str(output_dir), unet_lora_layers=convert_state_dict_to_diffusers(weights)
        )

    def _trained(self, models: list[Any]) -> Any:
        if len(models) != 1:
            raise ValueError(f"models: one UNet is trained, got {len(models)} models")
        (unet,) = models
        if not hasattr(unet, "register_to_config") or self.use_lora != _adapted(unet):
            wanted = "a UNet of diffusers with" if self.use_lora else "a UNet of diffusers without"
            raise ValueError(f"models: {wanted} LoRA is wanted, got {type(unet).__name__}")
        return unet


def _adapted(unet: Any) -> bool:
    return _ADAPTER in (getattr(unet, "peft_config", None) or {})


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f"DefaultDDPOStableDiffusionPipeline needs the package {package}: pip install {package}"
        )
