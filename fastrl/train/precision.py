"""What a model answers stays in fp32, whatever dtype it computes in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch


def keep_answers(accelerator: Any) -> None:
    """Let FSDP2 hand log-probabilities and values through as they are.

    Under mixed precision accelerate has it cast whatever a module returns to 16 bits, which leaves
    of a log-probability of -4 the nearest multiple of 1/64. Layers return 16 bits by themselves.

    Args:
        accelerator: before it prepares a model.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    policy = getattr(plugin, "mixed_precision_policy", None)
    if getattr(policy, "output_dtype", None) in (torch.bfloat16, torch.float16):
        plugin.mixed_precision_policy = replace(policy, output_dtype=None)
