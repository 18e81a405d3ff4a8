"""Models: loading, value heads, references, and log-probabilities of given tokens."""

from fastrl.models.policy import logprobs, prepare_policy
from fastrl.models.pooled import prepare_rewards, rewards
from fastrl.models.reference import create_reference_model
from fastrl.models.value_head import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    ValueHead,
)
from fastrl.models.wrapper import PreTrainedModelWrapper

SUPPORTED_ARCHITECTURES = (AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead)

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
