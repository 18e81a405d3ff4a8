"""What `fastrl ddpo` and `fastrl alignprop` share: the pipeline, the prompts and the reward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastrl.cli.rewarded import imported

AESTHETIC = "aesthetic"


@dataclass
class PipelineArguments:
    """Which pipeline is trained, on which prompts, and what its images are worth.

    Raises:
        ValueError: a reward that is neither known by name nor a dotted path.
    """

    pretrained_model: str | None = field(
        default=None, metadata={"help": "Stable Diffusion's folder, or its name on the hub."}
    )
    pretrained_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit on the hub."}
    )
    use_lora: bool = field(
        default=True, metadata={"help": "Train LoRA in the UNet's attention; False: the UNet."}
    )
    prompts: str | None = field(
        default=None, metadata={"help": "A text file, a prompt a line; they are drawn at random."}
    )
    reward_function: str = field(
        default=AESTHETIC,
        metadata={
            "help": f"{AESTHETIC} (the LAION predictor), or package.module.function of (images, "
            "prompts, metadata) that returns (rewards, anything)."
        },
    )
    hf_hub_aesthetic_model_id: str = field(
        default="trl-lib/ddpo-aesthetic-predictor",
        metadata={"help": f"Folder or name on the hub of the weights of {AESTHETIC}."},
    )
    hf_hub_aesthetic_model_filename: str = field(
        default="aesthetic-model.pth", metadata={"help": f"File of the weights of {AESTHETIC}."}
    )
    output_dir: str = field(
        default="runs/pipeline", metadata={"help": "Folder for the pipeline and its checkpoints."}
    )
    hf_hub_model_id: str | None = field(
        default=None, metadata={"help": "Name on the hub to push the trained pipeline to."}
    )

    def __post_init__(self) -> None:
        if self.reward_function != AESTHETIC and "." not in self.reward_function:
            raise ValueError(
                f"reward_function={self.reward_function!r} is neither {AESTHETIC} nor a path like "
                "package.module.function"
            )


def train(trainer: type, options: PipelineArguments, config: Any) -> None:
    """Train as the options say, save to `output_dir`, and push if asked to.

    Raises:
        ValueError: no pipeline, no prompts, or no reward at the path.
    """
    if options.pretrained_model is None:
        raise ValueError("pretrained_model is needed: a folder, or a name on the hub")
    prompt = prompts_of(options.prompts)
    scored = _reward(options)
    from fastrl.models.diffusion import DefaultDDPOStableDiffusionPipeline

    pipeline = DefaultDDPOStableDiffusionPipeline(
        options.pretrained_model,
        pretrained_model_revision=options.pretrained_revision,
        use_lora=options.use_lora,
    )
    if config.logdir == type(config).logdir:  # checkpoints go to output_dir unless told otherwise
        config.logdir = options.output_dir
    trained = trainer(config, scored, prompt, pipeline)
    trained.train()
    if trained.accelerator.is_main_process:
        trained.save_pretrained(options.output_dir)
        if options.hf_hub_model_id:
            trained.push_to_hub(options.hf_hub_model_id)
    trained.accelerator.print(f"saved to {options.output_dir}")
    trained.accelerator.end_training()


def prompts_of(file: str | None) -> Callable[[], tuple[str, dict[str, Any]]]:
    """A function that draws a line of a file.

    Raises:
        ValueError: no file is named, there is none, or it has no line.
    """
    if file is None or not Path(file).is_file():
        raise ValueError(f"prompts={file!r}: give a text file, a prompt a line")
    lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"prompts={file!r}: the file has no line")
    return lambda: (lines[np.random.randint(len(lines))], {})


def _reward(options: PipelineArguments) -> Callable[..., Any]:
    if options.reward_function != AESTHETIC:
        return imported(options.reward_function, argument="reward_function")
    from fastrl.rewards.aesthetic import aesthetic_scorer

    return aesthetic_scorer(
        options.hf_hub_aesthetic_model_id, options.hf_hub_aesthetic_model_filename
    )
