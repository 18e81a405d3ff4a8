"""What ddpo.py and alignprop.py share: their flags, prompts, rewards and the hook for images."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tiny_pipeline
import torch

from fastrl import DefaultDDPOStableDiffusionPipeline, TrlParser

ANIMALS = (
    *("ant", "badger", "bear", "beetle", "cat", "cow", "crane", "crow", "deer", "dog", "dolphin"),
    *("donkey", "eagle", "fox", "frog", "goat", "hare", "heron", "horse", "mole", "moth", "otter"),
    *("owl", "ox", "panda", "pike", "rabbit", "rat", "seal", "shark", "sheep", "swan", "wolf"),
)
# A smoke run's settings, beneath those on the command line.
SMOKE = {
    "mixed_precision": "no",
    "num_epochs": 2,
    "sample_num_steps": 3,
    "sample_batch_size": 4,
    "train_batch_size": 2,
    "truncated_rand_backprop_minmax": (0, 2),
    "reward": "brightness",
}


@dataclass
class ImageArguments:
    """Which pipeline is trained, and for what."""

    pretrained_model: str = field(
        default="stable-diffusion-v1-5/stable-diffusion-v1-5",
        metadata={"help": "The pipeline's folder, or its name on the hub."},
    )
    pretrained_revision: str = field(
        default="main", metadata={"help": "A branch, a tag or a commit of it."}
    )
    use_lora: bool = field(default=True, metadata={"help": "Train LoRA rather than the UNet."})
    reward: str = field(
        default="aesthetic",
        metadata={"help": "What images are worth.", "choices": ["aesthetic", "brightness"]},
    )
    hf_hub_aesthetic_model_id: str = field(
        default="trl-lib/ddpo-aesthetic-predictor",
        metadata={"help": "Folder, or name on the hub, of the aesthetic reward's weights."},
    )
    hf_hub_aesthetic_model_filename: str = field(
        default="aesthetic-model.pth", metadata={"help": "Their file."}
    )
    hf_hub_model_id: str | None = field(
        default=None, metadata={"help": "Push the pipeline there when it is trained."}
    )
    hf_user_access_token: str | None = field(
        default=None, metadata={"help": "Log in to the hub with it first."}
    )
    output_dir: str = field(
        default="runs/images", metadata={"help": "The pipeline and log.jsonl go there."}
    )
    smoke: bool = field(
        default=False,
        metadata={"help": "Two epochs of a tiny pipeline that is made here, to see that it runs."},
    )


def parse(config: type, argv: Sequence[str] | None, about: str) -> tuple[ImageArguments, Any]:
    """(ImageArguments, config) of the words; `--ddpo_config.seed 1` is `--seed 1`."""
    words = list(sys.argv[1:] if argv is None else argv)
    words = [re.sub(r"^--(?:ddpo|alignprop)[-_]config\.", "--", word) for word in words]
    parser = TrlParser((ImageArguments, config), description=about.split("\n")[0])
    if "--smoke" in words:
        known = {*ImageArguments.__dataclass_fields__, *config.__dataclass_fields__}
        parser.set_defaults(**{name: value for name, value in SMOKE.items() if name in known})
    return parser.parse_args_and_config(words)


def prompt() -> tuple[str, dict[str, Any]]:
    """An animal."""
    return str(np.random.choice(ANIMALS)), {}


def brightness(
    images: torch.Tensor, prompts: Any, metadata: Any
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The mean of all pixels; differentiable, and needs no model."""
    return images.float().mean(dim=(1, 2, 3)), {}


def train(trainer: type, config: Any, options: ImageArguments) -> list[dict[str, Any]]:
    """Load, train, save, and push if asked to; returns what was logged."""
    if options.hf_user_access_token:
        from huggingface_hub import login

        login(token=options.hf_user_access_token)
    folder, scored = Path(options.output_dir), brightness
    if options.reward == "aesthetic":
        from fastrl.rewards.aesthetic import aesthetic_scorer

        scored = aesthetic_scorer(
            options.hf_hub_aesthetic_model_id, options.hf_hub_aesthetic_model_filename
        )
    if options.smoke:
        options.pretrained_model = tiny_pipeline.save(folder / "start")
    if config.logdir == type(config).logdir:  # checkpoints go to output_dir unless told otherwise
        config.logdir = str(folder)
    pipeline = DefaultDDPOStableDiffusionPipeline(
        options.pretrained_model,
        pretrained_model_revision=options.pretrained_revision,
        use_lora=options.use_lora,
    )
    trained = trainer(config, scored, prompt, pipeline, image_samples_hook=show)
    trained.train()
    trained.save_pretrained(folder)
    rows = [{k: v for k, v in row.items() if k != "reward"} for row in trained.log_history]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    if options.hf_hub_model_id:
        trained.push_to_hub(options.hf_hub_model_id)
    return rows


def show(data: Any, step: int, tracker: Any) -> None:
    """The last images to the tracker, named by prompt and reward; data of either trainer's."""
    if isinstance(data, dict):
        images, prompts, rewards = data["images"], data["prompts"], data["rewards"]
    else:
        images, prompts, _, rewards, _ = data[-1]
    tracker.log_images(
        {
            f"{prompt:.25} {reward:.3f}": image[None].detach().float().cpu().numpy()
            for image, prompt, reward in zip(images, prompts, rewards.tolist(), strict=True)
        },
        step=step,
    )
