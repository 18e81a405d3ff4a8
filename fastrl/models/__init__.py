"""Models: loading, value heads, references, and log-probabilities of given tokens.

Names are imported at first use, so that what needs one of them loads no more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Public name -> the module that defines it.
_HOMES = {
    "SUPPORTED_ARCHITECTURES": "fastrl.models.value_head",
    "AutoModelForCausalLMWithValueHead": "fastrl.models.value_head",
    "AutoModelForSeq2SeqLMWithValueHead": "fastrl.models.value_head",
    "PreTrainedModelWrapper": "fastrl.models.wrapper",
    "ValueHead": "fastrl.models.value_head",
    "create_reference_model": "fastrl.models.reference",
    "logprobs": "fastrl.models.policy",
    "prepare_policy": "fastrl.models.policy",
    "prepare_rewards": "fastrl.models.pooled",
    "rewards": "fastrl.models.pooled",
}

__all__ = [
    "SUPPORTED_ARCHITECTURES",
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "PreTrainedModelWrapper",
    "ValueHead",
    "create_reference_model",
    "logprobs",
    "prepare_policy",
    "prepare_rewards",
    "rewards",
]

if TYPE_CHECKING:
    from fastrl.models.policy import logprobs, prepare_policy
    from fastrl.models.pooled import prepare_rewards, rewards
    from fastrl.models.reference import create_reference_model
    from fastrl.models.value_head import (
        SUPPORTED_ARCHITECTURES,
        AutoModelForCausalLMWithValueHead,
        AutoModelForSeq2SeqLMWithValueHead,
        ValueHead,
    )
    from fastrl.models.wrapper import PreTrainedModelWrapper


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
