"""Configuration of AlignProp: the fields and defaults of TRL."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastrl.train.diffusion_config import DiffusionConfig


@dataclass
class AlignPropConfig(DiffusionConfig):
    """Settings of `AlignPropTrainer`; those it shares are in `DiffusionConfig`.

    Args:
        log_image_freq: optimizer steps between calls of the hook for images.
        truncated_backprop_rand: which denoising steps get gradients is drawn anew for each step.
        truncated_backprop_timestep: the first step that gets gradients, without drawing.
        truncated_rand_backprop_minmax: step i gets gradients if a whole number drawn between these
            two is at most i.

    Raises:
        ValueError: as `DiffusionConfig`; or no denoising step could get gradients.
    """

    train_learning_rate: float = 1e-3
    negative_prompts: str | None = None
    log_image_freq: int = 1
    truncated_backprop_rand: bool = True
    truncated_backprop_timestep: int = 49
    truncated_rand_backprop_minmax: list[int] = field(default_factory=lambda: [0, 50])

    _from_0 = (*DiffusionConfig._from_0, "truncated_backprop_timestep")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.truncated_rand_backprop_minmax
        pair = tuple(given) if isinstance(given, list | tuple) else ()
        whole = len(pair) == 2 and all(isinstance(x, int) and x >= 0 for x in pair)
        if not whole or pair[0] > pair[1]:
            self.refuse(
                "truncated_rand_backprop_minmax", "two whole numbers from 0 on are needed, in order"
            )
        last = self.sample_num_steps - 1
        name = "truncated_rand_backprop_minmax"
        first = pair[0]
        if not self.truncated_backprop_rand:
            name, first = "truncated_backprop_timestep", self.truncated_backprop_timestep
        if first > last:
            self.refuse(
                name, f"no step is that late: the last of sample_num_steps is {last}, so lower it"
            )
