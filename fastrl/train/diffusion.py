"""What trainers of Stable Diffusion pipelines share: processes, precision, checkpoints, prompts."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import (
    DistributedType,
    ProjectConfiguration,
    broadcast,
    parse_flag_from_env,
    set_seed,
)

from fastrl.legacy import warn_once
from fastrl.train.agreement import agreed
from fastrl.train.classic import require_trackers
from fastrl.train.descent import Descent
from fastrl.train.diffusion_config import DiffusionConfig
from fastrl.train.hub import HubTrainer
from fastrl.train.prompt_statistics import PerPromptStatTracker

Prompts = Callable[[], tuple[str, Any]]
Rewards = Callable[[torch.Tensor, tuple[str, ...], tuple[Any, ...]], tuple[Any, Any]]
Hook = Callable[[Any, int, Any], Any]

_PROGRESS = "progress.json"
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_PARTS = ("vae", "text_encoder", "unet", "tokenizer", "scheduler")
_CARD = """---
library_name: diffusers
tags: [fastrl, {algorithm}, diffusers, reinforcement-learning, text-to-image]
---
# {model_name}

A Stable Diffusion pipeline whose images were optimised for a reward with fastrl's {title}.

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("{model_id}")
```

If the folder holds LoRA weights, `pipeline.load_lora_weights("{model_id}")` adds them.
"""


class _NoTracker(GeneralTracker):
    """What a hook for images is given where nothing is tracked: it takes all and keeps nothing."""

    name = "none"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__(_blank=True)

    def log_images(self, values: Any, step: int | None = None, **kwargs: Any) -> None:
        """Keep nothing."""


class _MeanDescent(Descent):
    """Gradients are averaged over the ranks before each optimizer step.

    Pipelines call the UNet themselves, not a wrapper of it that would do so.
    """

    def _gradient_norm(self, loss: torch.Tensor) -> torch.Tensor:
        if self.accelerator.num_processes > 1:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.copy_(self.accelerator.reduce(parameter.grad, "mean"))
        return super()._gradient_norm(loss)


class DiffusionTrainer(HubTrainer):
    """Accelerator, trained weights, checkpoints and embeddings; `step` is a subclass's."""

    _title = "Diffusion"
    _epoch = _reached = 0  # the epoch under way, and the optimizer steps before the next
    stat_tracker: PerPromptStatTracker | None = None

    def __init__(
        self,
        config: DiffusionConfig,
        reward_function: Rewards,
        prompt_function: Prompts,
        sd_pipeline: Any,
        image_samples_hook: Hook | None = None,
    ) -> None:
        functions = (reward_function, prompt_function, image_samples_hook)
        _check_parts(functions, sd_pipeline)
        self.reward_fn, self.prompt_fn, self.image_samples_callback = functions
        self.config, self.sd_pipeline = config, sd_pipeline
        passes = self._set_up(config)  # nothing of the pipeline is changed before the checks
        if config.resume_from:
            config.resume_from = str(_last_checkpoint(config.resume_from))
        self.accelerator = self._start_accelerator(passes)
        fits, why = self._config_check()
        if not fits:
            raise ValueError(why)
        self._start_trackers()
        set_seed(config.seed, device_specific=True)
        torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
        sd_pipeline.set_progress_bar_config(
            position=1,
            disable=not self.accelerator.is_local_main_process,
            leave=False,
            desc="Timestep",
            dynamic_ncols=True,
        )
        self._prepare()
        self.neg_prompt_embed = self._embed([config.negative_prompts or ""])[1]
        self.autocast = sd_pipeline.autocast or self.accelerator.autocast
        self.log_history: list[dict[str, Any]] = []
        self.first_epoch = 0
        if config.resume_from:
            self.accelerator.load_state(config.resume_from)

    def _set_up(self, config: Any) -> int:
        """Check and make what is the algorithm's own; returns the backward passes of a sample."""
        raise NotImplementedError

    def _start_accelerator(self, passes: int) -> Accelerator:
        config = self.config
        precision = config.mixed_precision
        given: dict[str, Any] = dict(config.accelerator_kwargs)  # type: ignore[arg-type]
        asked = given.get("cpu") or parse_flag_from_env("ACCELERATE_USE_CPU")
        if precision == "fp16" and (asked or not torch.accelerator.is_available()):
            warn_once("mixed_precision='fp16' needs a GPU: training in fp32 on this CPU")
            precision = "no"
        project = {
            "project_dir": os.path.join(config.logdir, config.run_name or ""),
            "automatic_checkpoint_naming": True,
            "total_limit": config.num_checkpoint_limit,
            **dict(config.project_kwargs),  # type: ignore[arg-type]
        }
        if config.resume_from:
            project["iteration"] = _number(Path(config.resume_from)) + 1
        accelerator = Accelerator(
            log_with=config.log_with,
            mixed_precision=precision,
            project_config=ProjectConfiguration(**project),
            gradient_accumulation_steps=config.train_gradient_accumulation_steps * passes,
            **given,
        )
        require_trackers(config.log_with, accelerator.log_with)
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError(
                f"{type(self).__name__} trains whole copies of the UNet on every process: start it "
                f"without {accelerator.distributed_type.value}, for example with --multi_gpu"
            )
        return accelerator

    def _config_check(self) -> tuple[bool, str]:
        """(whether the sizes of batches fit together, and if not why)."""
        return True, ""

    def _start_trackers(self) -> None:
        config, name = self.config, self._title.lower()
        settings = config.to_dict()
        found = {str(tracker) for tracker in self.accelerator.log_with}
        if "tensorboard" in found:  # which takes flat values of these types only
            plain = (bool, int, float, str, type(None))
            settings = {k: v if isinstance(v, plain) else str(v) for k, v in settings.items()}
        else:
            settings = {f"{name}_trainer_config": settings}
        kwargs: dict[str, Any] = dict(config.tracker_kwargs)  # type: ignore[arg-type]
        if config.run_name and "wandb" in found:
            kwargs["wandb"] = {"name": config.run_name, **kwargs.get("wandb", {})}
        self.accelerator.init_trackers(
            config.tracker_project_name, config=settings, init_kwargs=kwargs
        )

    def _prepare(self) -> None:
        """Trained weights in fp32 and equal on all ranks; all others in the computing dtype."""
        accelerator, pipeline = self.accelerator, self.sd_pipeline
        layers = pipeline.get_trainable_layers()
        weights = layers if isinstance(layers, list) else list(layers.parameters())
        trained = [weight for weight in weights if weight.requires_grad]
        if not trained:
            raise ValueError(
                "sd_pipeline.get_trainable_layers() has no parameter that wants a gradient"
            )
        known = {id(weight) for weight in trained}
        dtype = _DTYPES.get(accelerator.mixed_precision, torch.float32)
        for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
            part.to(accelerator.device)
            for weight in part.parameters():
                if weight.is_floating_point():
                    weight.data = weight.data.to(torch.float32 if id(weight) in known else dtype)
        for weight in trained:
            broadcast(weight.data)
        accelerator.register_save_state_pre_hook(self._save_model_hook)
        accelerator.register_load_state_pre_hook(self._load_model_hook)
        self.trainable_layers = layers
        if isinstance(layers, torch.nn.Module):
            self.trainable_layers = accelerator.prepare_model(layers, evaluation_mode=True)
        self.optimizer = accelerator.prepare_optimizer(self._setup_optimizer(trained))
        self._descend = _MeanDescent(
            accelerator, self.optimizer, trained, self.config.train_max_grad_norm
        )

    def _setup_optimizer(self, trainable_layers_parameters: Any) -> torch.optim.Optimizer:
        """AdamW of these parameters as the config says."""
        config, given = self.config, list(trainable_layers_parameters)
        kwargs: dict[str, Any] = {
            "lr": config.train_learning_rate,
            "betas": (config.train_adam_beta1, config.train_adam_beta2),
            "weight_decay": config.train_adam_weight_decay,
            "eps": config.train_adam_epsilon,
        }
        if config.train_use_8bit_adam:
            import bitsandbytes

            return bitsandbytes.optim.AdamW8bit(given, **kwargs)
        fused = all(p.device.type in ("cpu", "cuda") for p in given)
        return torch.optim.AdamW(given, fused=fused, **kwargs)

    def _embed(self, prompts: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(token ids (B, L), embeddings (B, L, D)) of prompts, cut or padded to the model's L."""
        tokenizer = self.sd_pipeline.tokenizer
        ids = tokenizer(
            [str(prompt) for prompt in prompts],
            return_tensors="pt",
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
        ).input_ids.to(self.accelerator.device)
        with torch.no_grad():
            return ids, self.sd_pipeline.text_encoder(ids)[0]

    def _prompts(self, number: int) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        """Prompts and their metadata, of so many calls of the prompt function."""
        drawn = [self.prompt_fn() for _ in range(number)]
        for one in drawn:
            if not isinstance(one, tuple | list) or len(one) != 2:
                raise ValueError(f"prompt_function must return (prompt, metadata), got {one!r}")
        return tuple(prompt for prompt, _ in drawn), tuple(metadata for _, metadata in drawn)

    def _rewards_and_details(self, found: Any, number: int) -> tuple[torch.Tensor, Any]:
        """Rewards (B,) on this device and their metadata, of what a reward function returned."""
        if not isinstance(found, tuple | list) or len(found) != 2:
            size = f" of {len(found)}" if isinstance(found, tuple | list) else ""
            raise ValueError(
                f"reward_function must return (rewards, metadata), got {type(found).__name__}{size}"
            )
        rewards, details = (one.result() if isinstance(one, Future) else one for one in found)
        try:
            rewards = torch.as_tensor(rewards, device=self.accelerator.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"reward_function must return numbers as rewards, got {rewards!r}: {error}"
            ) from error
        if rewards.shape != (number,):
            raise ValueError(
                f"reward_function must return one reward for each of {number} images, a tensor of "
                f"shape ({number},); got {tuple(rewards.shape)}"
            )
        return rewards, details

    def _log_step(
        self, info: dict[str, list[torch.Tensor]], place: dict[str, int], global_step: int
    ) -> None:
        means = torch.stack([torch.stack(values).float().mean() for values in info.values()])
        means = self.accelerator.reduce(means, reduction="mean").tolist()
        self._log({**dict(zip(info, means, strict=True)), **place}, global_step)

    def _log(self, values: dict[str, Any], step: int) -> None:
        """To the trackers and `log_history`."""
        self.log_history.append({**values, "step": step})
        self.accelerator.log(values, step=step)

    def _show_images(self, data: Any, step: int) -> None:
        """Call the hook, on the main process, with its images."""
        trackers = self.accelerator.trackers
        with agreed(self.accelerator, "image_samples_hook"):
            if self.image_samples_callback is None or not self.accelerator.is_main_process:
                return
            if not trackers:
                warn_once("image_samples_hook gets a tracker that keeps nothing: set log_with")
            self.image_samples_callback(data, step, trackers[0] if trackers else _NoTracker())

    def step(self, epoch: int, global_step: int) -> int:
        """One epoch.

        Args:
            epoch: its number; a checkpoint follows every `save_freq` but the first.
            global_step: optimizer steps before.

        Returns:
            Optimizer steps after.
        """
        raise NotImplementedError

    def train(self, epochs: int | None = None) -> None:
        """Train to this number of epochs (None: `config.num_epochs`), from where it was resumed."""
        for epoch in range(self.first_epoch, self.config.num_epochs if epochs is None else epochs):
            self._reached = self.step(epoch, self._reached)
        if self.config.push_to_hub and self.accelerator.is_main_process:
            self.push_to_hub(str(self.config.run_name))

    def _save_state(self, epoch: int, global_step: int) -> None:
        """A checkpoint if one is due after this epoch."""
        if epoch == 0 or epoch % self.config.save_freq:
            return
        self._epoch, self._reached = epoch, global_step
        self.accelerator.save_state()

    def _save_model_hook(self, models: list[Any], weights: list[Any], output_dir: str) -> None:
        if self.accelerator.is_main_process:
            self.sd_pipeline.save_checkpoint(models, weights, output_dir)
            seen = self.stat_tracker.stats if self.stat_tracker else {}
            progress = {
                "epoch": self._epoch,
                "global_step": self._reached,
                "rewards": {prompt: list(rewards) for prompt, rewards in seen.items()},
            }
            (Path(output_dir) / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
        weights.clear()  # accelerate has none left to write

    def _load_model_hook(self, models: list[Any], input_dir: str) -> None:
        self.sd_pipeline.load_checkpoint(models, input_dir)
        models.clear()  # accelerate has none left to read
        file = Path(input_dir) / _PROGRESS
        if not file.exists():  # a checkpoint of TRL's
            self.first_epoch = _number(Path(input_dir)) + 1
            return
        progress = json.loads(file.read_text(encoding="utf-8"))
        self.first_epoch, self._reached = progress["epoch"] + 1, progress["global_step"]
        if self.stat_tracker:
            kept = self.stat_tracker.buffer_size
            self.stat_tracker.stats = {
                prompt: deque(rewards, maxlen=kept)
                for prompt, rewards in progress["rewards"].items()
            }

    def _card(self, model_name: str | None, model_id: str) -> str:
        """The text of the model card."""
        name = self._title.lower()
        return _CARD.format(
            algorithm=name, title=self._title, model_name=model_name, model_id=model_id
        )

    def create_model_card(self, path: str, model_name: str | None = None) -> None:
        """Write `path/README.md`; offline, where the author is unknown, warn and write nothing."""
        super().create_model_card(path, model_name or f"TRL {self._title} Model")

    def _save_pretrained(self, save_directory: str | Path) -> None:
        self.sd_pipeline.save_pretrained(save_directory)
        self.create_model_card(str(save_directory))


def _check_parts(functions: tuple[Any, Any, Any], pipeline: Any) -> None:
    names = ("reward_function", "prompt_function", "image_samples_hook")
    for name, function in zip(names, functions, strict=True):
        if not callable(function) and not (function is None and name == names[-1]):
            raise ValueError(f"{name} must be callable, got {type(function).__name__}")
    for part in (*_PARTS, "get_trainable_layers"):
        if not hasattr(pipeline, part):
            raise ValueError(
                f"sd_pipeline must be a DDPOStableDiffusionPipeline, got {type(pipeline).__name__} "
                f"without {part}: DefaultDDPOStableDiffusionPipeline(name) makes one"
            )


def _number(checkpoint: Path) -> int:
    """N of a folder checkpoint_N; -1 of any other."""
    found = re.fullmatch(r"checkpoint_(\d+)", checkpoint.name)
    return int(found[1]) if found else -1


def _last_checkpoint(place: str) -> Path:
    """The checkpoint itself, or the last of a folder.

    Raises:
        ValueError: there is none.
    """
    folder = Path(os.path.normpath(os.path.expanduser(place)))
    if _number(folder) >= 0 and folder.is_dir():
        return folder
    inside = [p for p in folder.glob("checkpoint_*") if p.is_dir() and _number(p) >= 0]
    found = sorted(inside, key=_number)
    if not found:
        raise ValueError(
            f"resume_from={place!r}: no checkpoint_N there; give one, or the folder they are in"
        )
    return found[-1]
