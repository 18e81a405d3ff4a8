"""Bias-corrected exponential moving average of the weights (arXiv 2508.00180, algorithm 1)."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]
PARTS = ("start", "ema", "bema")
CHECKPOINT = "bema.safetensors"


class BEMACallback(TrainerCallback):
    """Keeps averaged weights beside the trained ones and saves them to `output_dir/bema`.

    With t the step and `start` the weights at step `update_after` (or where training began):

        beta_t  = max((lag + multiplier t)^-ema_power, min_ema_multiplier)
        alpha_t = (lag + multiplier t)^-bias_power
        ema    <- (1 - beta_t) ema + beta_t weights
        bema    = ema + alpha_t (weights - start)

    at every `update_freq`-th step after `update_after`. The averages are fp32 for 16-bit weights;
    frozen weights are not averaged. They travel in the checkpoints, so a resumed run continues.

    Args:
        update_freq: steps between updates.
        ema_power: kappa; 0 makes the average the weights themselves.
        bias_power: eta; 0 keeps alpha at 1.
        lag: rho, the age at which the schedules start.
        update_after: tau, steps before averaging begins.
        multiplier: gamma, how fast the schedules age.
        min_ema_multiplier: floor of beta.
        device: where the three copies live.

    Raises:
        ValueError: parameters are partitioned over processes (ZeRO-3, FSDP).
    """

    def __init__(
        self,
        update_freq: int = 400,
        ema_power: float = 0.5,
        bias_power: float = 0.2,
        lag: int = 10,
        update_after: int = 0,
        multiplier: float = 1.0,
        min_ema_multiplier: float = 0.0,
        device: str = "cpu",
    ) -> None:
        if update_freq < 1:
            raise ValueError(f"update_freq={update_freq}: it must be at least 1")
        self.update_freq = update_freq
        self.ema_power = ema_power
        self.bias_power = bias_power
        self.lag = lag
        self.update_after = update_after
        self.multiplier = multiplier
        self.min_ema_multiplier = min_ema_multiplier
        self.device = device
        self._model: Any = None
        self._trained: Tensors = {}
        self._parts: dict[str, Tensors] = {}

    @torch.no_grad()
    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs: Any,
    ) -> None:
        """Take the starting weights, or those of the checkpoint that training goes on from."""
        self._model = extract_model_from_parallel(model)
        self._trained = {n: p for n, p in self._model.named_parameters() if p.requires_grad}
        for name, parameter in self._trained.items():
            if hasattr(parameter, "ds_id") or hasattr(parameter, "device_mesh"):
                raise ValueError(
                    f"BEMACallback cannot average {name}, which is partitioned over processes: "
                    "use DDP, ZeRO-1 or ZeRO-2"
                )
        self._parts = {part: self._copy() for part in PARTS}
        if state.global_step > 0:
            self._resume(_checkpoint(args, state))

    def _copy(self) -> Tensors:
        """The weights on our device, fp32 or wider."""
        return {
            name: p.detach().to(self.device, torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in self._trained.items()
        }

    def _ema_beta(self, step: int) -> float:
        beta = (self.lag + self.multiplier * step) ** -self.ema_power
        return max(beta, self.min_ema_multiplier)

    def _bema_alpha(self, step: int) -> float:
        return (self.lag + self.multiplier * step) ** -self.bias_power

    def _update_bema_weights(self, step: int) -> None:
        beta, alpha = self._ema_beta(step), self._bema_alpha(step)
        for name, parameter in self._trained.items():
            start, ema, bema = (self._parts[part][name] for part in PARTS)
            weights = parameter.detach().to(ema)
            ema.mul_(1 - beta).add_(weights, alpha=beta)
            bema.copy_(ema + alpha * (weights - start))

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin at `update_after`, then update every `update_freq` steps."""
        age = state.global_step - self.update_after
        if age == 0:
            for part in ("start", "ema"):
                self._parts[part] = self._copy()
        elif age > 0 and age % self.update_freq == 0:
            self._update_bema_weights(state.global_step)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the averages to the checkpoint."""
        if state.is_world_process_zero:
            flat = {f"{part}/{n}": t for part in PARTS for n, t in self._parts[part].items()}
            save_file(flat, _checkpoint(args, state))

    def _resume(self, path: Path) -> None:
        if not path.exists():
            warnings.warn(
                f"BEMACallback: {path} is missing, so averaging starts anew from these weights",
                stacklevel=2,
            )
            return
        for key, tensor in load_file(path, device=self.device).items():
            part, name = key.split("/", 1)
            self._parts[part][name].copy_(tensor)

    def weights(self) -> Tensors:
        """The model's state dict with the averaged weights in it."""
        trained = {id(p): name for name, p in self._trained.items()}
        state = dict(self._model.state_dict())
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            if id(parameter) in trained and name in state:  # a tied weight has several names
                averaged = self._parts["bema"][trained[id(parameter)]]
                state[name] = averaged.to(parameter.dtype)
        return state

    @property
    def running_model(self) -> Any:
        """A model of its own with the averaged weights, on `device`."""
        twin = type(self._model)(self._model.config).to(self.device)
        twin.load_state_dict(self.weights())
        return twin

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the averaged model, and the tokenizer with it."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / "bema"
        self._model.save_pretrained(folder, state_dict=self.weights())
        if kwargs.get("processing_class") is not None:
            kwargs["processing_class"].save_pretrained(folder)
        logger.info("averaged weights saved to %s", folder)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    folder = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    return Path(args.output_dir) / folder / CHECKPOINT
