"""A reference model that follows the policy (TR-DPO, arXiv 2404.09656, equation 4)."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class SyncRefModelCallback(TrainerCallback):
    """Every `args.ref_model_sync_steps` steps: ref <- (1 - a) ref + a policy.

    a is `args.ref_model_mixup_alpha`; 1 copies the policy.

    Args:
        ref_model: the reference; None makes the callback idle.
        accelerator: unwraps the policy; None if it is not wrapped.
    """

    def __init__(self, ref_model: nn.Module | None, accelerator: Accelerator | None) -> None:
        self.ref_model = ref_model
        self.accelerator = accelerator

    @staticmethod
    @torch.no_grad()
    def sync_target_model(model: nn.Module, target_model: nn.Module, alpha: float) -> None:
        """target <- (1 - alpha) target + alpha model, parameter by parameter.

        Under ZeRO-3 one pair of parameters is gathered at a time, so the whole models never are.

        Raises:
            ValueError: the models do not have the same parameters; nothing has been changed then.
        """
        pairs = list(zip(target_model.parameters(), model.parameters(), strict=False))
        counts = [len(list(m.parameters())) for m in (model, target_model)]
        if counts[0] != counts[1] or any(_shape(t) != _shape(p) for t, p in pairs):
            raise ValueError(
                f"the reference cannot follow the policy: {counts[1]} and {counts[0]} parameters, "
                "or of different shapes; give a reference of the same architecture, without adapter"
            )
        for held in (target_model, model):
            _reshard(held)
        # FSDP puts shares in the place of the parameters, so they are looked up again.
        pairs = zip(target_model.parameters(), model.parameters(), strict=True)
        for target, source in pairs:
            _mix(target, source, alpha)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Mix if this step is a multiple of the interval."""
        if self.ref_model is None or state.global_step % args.ref_model_sync_steps != 0:
            return
        model = kwargs["model"]
        if self.accelerator is not None:
            model = self.accelerator.unwrap_model(model)
        self.sync_target_model(model, self.ref_model, args.ref_model_mixup_alpha)


def _reshard(model: nn.Module) -> None:
    """Give up what FSDP2 still holds gathered of a pass that no backward followed."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _shape(parameter: nn.Parameter) -> torch.Size:
    """The whole parameter's shape, were it partitioned (ZeRO-3) or not."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _mix(target: nn.Parameter, source: nn.Parameter, alpha: float) -> None:
    if not hasattr(target, "ds_id") and not hasattr(source, "ds_id"):
        target.data.mul_(1.0 - alpha).add_(source.data, alpha=alpha)
        return
    import deepspeed

    partitioned = [p for p in (target, source) if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0):
        if AcceleratorState().process_index == 0:
            target.data.mul_(1.0 - alpha).add_(source.data, alpha=alpha)
