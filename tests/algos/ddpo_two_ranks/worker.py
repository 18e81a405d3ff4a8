"""One rank of `DDPOTrainer`: torchrun … worker.py FOLDER; writes FOLDER/<rank>.pt."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests" / "algos"), str(ROOT / "examples" / "scripts")]

from ddpo_parity.cases import COMMON, reward  # noqa: E402

from fastrl.algos.align_prop import AlignPropTrainer  # noqa: E402
from fastrl.algos.align_prop_config import AlignPropConfig  # noqa: E402
from fastrl.algos.ddpo import DDPOTrainer  # noqa: E402
from fastrl.algos.ddpo_config import DDPOConfig  # noqa: E402
from fastrl.models.diffusion import DefaultDDPOStableDiffusionPipeline  # noqa: E402
from tests.two_ranks import leave  # noqa: E402


class Quiet(DefaultDDPOStableDiffusionPipeline):
    def set_progress_bar_config(self, **_: Any) -> None:
        super().set_progress_bar_config(disable=True)


def prompt() -> tuple[str, dict[str, Any]]:
    return ("cat", "dog", "red bird")[int(torch.randint(3, ()))], {}


def build(folder: Path, **more: Any) -> DDPOTrainer:
    """Two images a rank and epoch, one optimizer step; LoRA drawn anew on each rank."""
    settings = {
        "sample_batch_size": 2,
        "sample_num_batches_per_epoch": 1,
        "train_batch_size": 2,
        "train_learning_rate": 1e-3,
        "per_prompt_stat_tracking": True,
        "per_prompt_stat_tracking_min_count": 2,
        "logdir": str(folder / "run"),
    }
    config = DDPOConfig(**{**COMMON, **settings, **more})
    return DDPOTrainer(config, reward, prompt, Quiet(str(folder / "pipeline")))


def weights(trainer: DDPOTrainer) -> torch.Tensor:
    trained = [p for p in trainer.sd_pipeline.unet.parameters() if p.requires_grad]
    return torch.cat([p.detach().flatten() for p in trained])


def averaged(trainer: DDPOTrainer, rank: int) -> torch.Tensor:
    """A gradient of 1 here and 3 there, as the optimizer gets it."""
    descend = trainer._descend
    descend.max_grad_norm = None
    for parameter in descend.parameters:
        parameter.grad = torch.full_like(parameter, 1.0 + 2 * rank)
    descend._gradient_norm(torch.tensor(0.0))
    return descend.parameters[0].grad


def aligned(folder: Path, rank: int) -> AlignPropTrainer:
    """An `AlignPropTrainer` whose rewards have no gradient on rank 1."""
    every_step = {"truncated_backprop_rand": False, "truncated_backprop_timestep": 0}
    config = AlignPropConfig(**COMMON, **every_step, logdir=str(folder / "aligned"))
    scored = lambda *given: (reward(*given)[0].detach() if rank else reward(*given)[0], {})  # noqa: E731
    return AlignPropTrainer(config, scored, prompt, Quiet(str(folder / "pipeline")))


def refusal(trainer: DDPOTrainer | AlignPropTrainer) -> str:
    """What a step raises."""
    try:
        trainer.step(4, 4)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main() -> None:
    """Run as this rank."""
    warnings.simplefilter("ignore")
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    trainer = build(folder)
    assert trainer.accelerator.num_processes == 2
    found = {"start": weights(trainer)}
    trainer.train(3)
    found |= {"weights": weights(trainer), "log": [dict(row) for row in trainer.log_history]}
    found["kept"] = trainer.stat_tracker.get_stats()
    if rank == 0:
        shutil.rmtree(folder / "run" / "checkpoints" / "checkpoint_1")
    dist.barrier()
    again = build(folder, resume_from=str(folder / "run" / "checkpoints"))
    again.train(3)
    found |= {"again": weights(again), "averaged": averaged(again, rank)}
    again.reward_fn = lambda *given: (reward(*given)[0] / (1 - rank), {})
    found["refused"] = refusal(again)
    again.reward_fn, again.image_samples_callback = reward, lambda *_: int("no picture")
    found["hook"] = refusal(again)
    found["alignprop"] = refusal(aligned(folder, rank))
    torch.save(found, folder / f"{rank}.pt")
    leave()


if __name__ == "__main__":
    main()
