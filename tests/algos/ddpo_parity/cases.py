"""Short runs of DDPO and AlignProp on a tiny pipeline, by fastrl and by TRL alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tiny_pipeline import fill

PROMPTS = ("red cat", "blue dog", "a", "grey bird on a tree")
COMMON = {
    "mixed_precision": "no",
    "seed": 3,
    "sample_num_steps": 3,
    "train_learning_rate": 1e-4,
    "accelerator_kwargs": {"cpu": True},
}


@dataclass(frozen=True)
class Case:
    """A run: `epochs` times sampling and training."""

    name: str
    algorithm: str
    epochs: int
    use_lora: bool
    settings: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case(
        "full",
        "DDPO",
        epochs=3,
        use_lora=False,
        settings={
            "sample_batch_size": 4,
            "sample_num_batches_per_epoch": 2,
            "train_batch_size": 2,
            "train_clip_range": 0.1,
            "sample_guidance_scale": 3.0,
        },
    ),
    Case(
        "lora",
        "DDPO",
        epochs=2,
        use_lora=True,
        settings={
            "sample_batch_size": 4,
            "sample_num_batches_per_epoch": 2,
            "train_batch_size": 1,
            "train_gradient_accumulation_steps": 2,
            "train_num_inner_epochs": 2,
            "train_timestep_fraction": 0.75,
            "train_clip_range": 1e-4,
            "train_max_grad_norm": 0.02,
            "train_adv_clip_max": 0.9,
            "train_learning_rate": 1e-3,
            "train_adam_epsilon": 1e-3,  # above the noise of rounding, which Adam would follow
            "sample_eta": 0.7,
            "per_prompt_stat_tracking": True,
            "per_prompt_stat_tracking_buffer_size": 6,
            "per_prompt_stat_tracking_min_count": 4,
            "negative_prompts": "dark",
        },
    ),
    Case(
        "guided_only_when_sampling",
        "DDPO",
        epochs=3,
        use_lora=False,
        settings={
            "sample_batch_size": 4,
            "sample_num_batches_per_epoch": 2,
            "train_batch_size": 2,
            "train_clip_range": 0.1,
            "train_cfg": False,
            "sample_guidance_scale": 1.5,
            "sample_eta": 0.5,
            "train_adam_beta1": 0.5,
            "train_adam_beta2": 0.9,
            "train_adam_epsilon": 1e-3,
            "train_adam_weight_decay": 0.3,
        },
    ),
    Case(
        "random_truncation",
        "AlignProp",
        epochs=10,
        use_lora=True,
        settings={
            "train_batch_size": 2,
            "train_gradient_accumulation_steps": 2,
            "truncated_rand_backprop_minmax": (0, 2),
            "train_learning_rate": 3e-3,
        },
    ),
    Case(
        "fixed_truncation",
        "AlignProp",
        epochs=10,
        use_lora=False,
        settings={
            "train_batch_size": 3,
            "truncated_backprop_rand": False,
            "truncated_backprop_timestep": 1,
            "train_learning_rate": 3e-3,
            "sample_eta": 0.0,
            "sample_guidance_scale": 2.0,
        },
    ),
)


class Prompts:
    """Each prompt in turn."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> tuple[str, dict[str, int]]:
        self.asked += 1
        return PROMPTS[self.asked * self.asked % 7 % len(PROMPTS)], {"number": self.asked}


def reward(images: Any, prompts: Any, metadata: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """Brightness; of the left half for prompts about a cat."""
    halves = images.float().mean(dim=(1, 2))
    left = halves[:, : halves.shape[1] // 2].mean(dim=1)
    about_cat = torch.tensor(["cat" in prompt for prompt in prompts])
    return torch.where(about_cat, left, halves.mean(dim=1)), {}


def pipeline(case: Case, library: Any, folder: Path) -> Any:
    """The tiny pipeline; whatever is trained starts from the same weights and the same draws."""

    class Known(library.DefaultDDPOStableDiffusionPipeline):
        def set_progress_bar_config(self, **_: Any) -> None:
            super().set_progress_bar_config(disable=True)

        def get_trainable_layers(self) -> Any:
            layers = super().get_trainable_layers()
            if case.use_lora:
                adapters = torch.nn.Module()
                found = {n: p for n, p in layers.named_parameters() if p.requires_grad}
                for name, weight in sorted(found.items()):
                    adapters.register_parameter(name.replace(".", "_"), weight)
                fill(adapters, 5)
            torch.manual_seed(7)
            return layers

    return Known(str(folder), use_lora=case.use_lora)


def run_case(case: Case, library: Any, folder: Path) -> dict[str, Any]:
    """What is logged, the norm of the trained weights, and the next draw of the generator."""
    config = getattr(library, f"{case.algorithm}Config")(**{**COMMON, **case.settings})
    trainer = getattr(library, f"{case.algorithm}Trainer")(
        config, reward, Prompts(), pipeline(case, library, folder)
    )
    log: list[dict[str, float]] = []
    trainer.accelerator.log = lambda values, step=None, **_: log.append(
        {**{k: float(v) for k, v in values.items() if k != "reward"}, "step": step}
    )
    trainer.accelerator.save_state = lambda *_, **__: None
    trainer.train(case.epochs)
    trained = [p for p in trainer.sd_pipeline.unet.parameters() if p.requires_grad]
    norm = torch.cat([p.detach().double().flatten() for p in trained]).norm().item()
    return {"log": log, "norm": norm, "draw": torch.rand(()).item()}
