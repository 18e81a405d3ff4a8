"""What of a generation batch is still to be trained on, kept beside a checkpoint."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from fastrl.train.experience import Experience
from fastrl.train.online_config import OnlineConfig


def save_rollouts(
    folder: Path, rank: int, micro_step: int, slices: list[Experience], args: OnlineConfig
) -> None:
    """Keep what of a generation batch is still to be trained on beside a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    held = [
        {**answers.__dict__, "scored": [torch.from_numpy(which) for which in answers.scored]}
        for answers in slices
    ]
    kept = {"micro_step": micro_step, "slices": held, "settings": _settings(args)}
    torch.save(kept, folder / f"rollouts_{rank}.pt")


def load_rollouts(
    folder: Path, accelerator: Accelerator, args: OnlineConfig
) -> tuple[int, list[Experience]] | None:
    """What `save_rollouts` kept; None if a process has nothing of it.

    Answers that were drawn under other settings are left out too, which is said.
    """
    path = folder / f"rollouts_{accelerator.process_index}.pt"
    kept: dict[str, Any] = {}
    if path.is_file():
        kept = torch.load(path, map_location=args.device, weights_only=True)
    now, then = _settings(args), kept.get("settings", {})
    changed = [
        f"{name}={then[name]}, now {now.get(name)}" for name in then if then[name] != now.get(name)
    ]
    usable = torch.tensor([int(bool(then) and not changed)], device=accelerator.device)
    if changed:
        warnings.warn(
            f"resume_from_checkpoint: what {path.name} holds was drawn with {'; '.join(changed)}, "
            "so training goes on with fresh answers",
            stacklevel=2,
        )
    if not accelerator.gather(usable).all():
        return None
    slices = [
        Experience(**{**held, "scored": [which.cpu().numpy() for which in held["scored"]]})
        for held in kept["slices"]
    ]
    return kept["micro_step"], slices


def _settings(args: OnlineConfig) -> dict[str, Any]:
    """Those that say which answers a micro-step learns from, and what is known of them."""
    names = (
        "world_size",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "steps_per_generation",
        "num_iterations",
        "num_generations",
        "beta",
        "use_vllm",
    )
    return {name: getattr(args, name) for name in names}
