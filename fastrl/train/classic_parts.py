"""The parts a `step()`-style trainer is made of: what they must be, and what stands in for one."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.deepspeed import DummyOptim
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from transformers import PreTrainedTokenizerBase

from fastrl.legacy import warn_once
from fastrl.models import SUPPORTED_ARCHITECTURES, PreTrainedModelWrapper
from fastrl.models.embeddings import vocabulary_size


def checked_parts(
    model: Any, ref_model: Any, tokenizer: Any, optimizer: Any, lr_scheduler: Any
) -> tuple[PreTrainedModelWrapper, PreTrainedTokenizerBase]:
    """Model and tokenizer, after all that a trainer is made of has passed its checks.

    Warns:
        UserWarning: if the reference is trained along with the model.

    Raises:
        ValueError: naming the argument and what it was.
    """
    names = " or ".join(c.__name__ for c in SUPPORTED_ARCHITECTURES)
    if not isinstance(model, SUPPORTED_ARCHITECTURES):
        raise ValueError(
            f"model must be an {names}, got {type(model).__name__}: wrap it, "
            "AutoModelForCausalLMWithValueHead.from_pretrained(model)"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"tokenizer must be a transformers tokenizer, got {type(tokenizer).__name__}: "
            "AutoTokenizer.from_pretrained(name) loads one"
        )
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    if not trained:
        raise ValueError(
            "model has no parameter that requires a gradient: nothing would be trained"
        )
    if ref_model is not None:
        _check_reference(model, ref_model, trained)
    if optimizer is not None:
        _check_optimizer(optimizer, trained)
    if lr_scheduler is not None:
        _check_scheduler(lr_scheduler, optimizer)
    return model, tokenizer


def _check_reference(model: Any, reference: Any, trained: set[int]) -> None:
    if not isinstance(reference, SUPPORTED_ARCHITECTURES):
        names = " or ".join(c.__name__ for c in SUPPORTED_ARCHITECTURES)
        raise ValueError(f"ref_model must be an {names} or None, got {type(reference).__name__}")
    encoders = [hasattr(m, "is_encoder_decoder") for m in (model, reference)]
    if encoders[0] != encoders[1]:
        raise ValueError(
            f"ref_model is a {type(reference).__name__} and model a {type(model).__name__}: their "
            "log-probabilities cannot be compared"
        )
    if any(id(p) in trained for p in reference.parameters()):
        warnings.warn(
            "ref_model shares trained parameters with model, so it moves along and the KL says "
            "little: give None or create_reference_model(model) for a frozen copy",
            stacklevel=4,
        )


def _check_optimizer(optimizer: Any, trained: set[int]) -> None:
    if isinstance(optimizer, DummyOptim):  # DeepSpeed's config makes the real one
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        found = optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__
        raise ValueError(
            f"optimizer must be a torch optimizer made from model.parameters(), got {found}"
        )
    held = (p for group in optimizer.param_groups for p in group["params"])
    if not any(id(p) in trained for p in held):
        raise ValueError(
            "optimizer holds none of the model's trainable parameters, so nothing would be "
            "trained: make it from the parameters() of this very model"
        )


def _check_scheduler(scheduler: Any, optimizer: torch.optim.Optimizer | None) -> None:
    if not isinstance(scheduler, LRScheduler):
        raise ValueError(
            f"lr_scheduler must be a torch LRScheduler, got {type(scheduler).__name__}"
        )
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError(
            "lr_scheduler is a ReduceLROnPlateau, whose step wants a metric that the trainer does "
            "not give: step it yourself, on trainer.optimizer, after each step()"
        )
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        other = "none was given" if optimizer is None else "another one was given"
        raise ValueError(
            f"lr_scheduler drives an optimizer that the trainer does not use ({other}): give "
            "optimizer= the one it was made with"
        )


def with_pad_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, padding with its end of sequence if it has no padding token.

    Raises:
        ValueError: if it has neither.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                "tokenizer has neither a padding nor an end-of-sequence token: set "
                "tokenizer.pad_token before making the trainer"
            )
        warn_once(f"tokenizer has no padding token: padding with {tokenizer.eos_token!r}")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_pad_id(tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    """Check that the model embeds the padding token.

    Raises:
        ValueError: if it does not.
    """
    size = vocabulary_size(model)
    pad = tokenizer.pad_token_id
    if size is not None and pad is not None and pad >= size:
        raise ValueError(
            f"tokenizer.pad_token_id is {pad}, outside the model's vocabulary of {size}: call "
            "model.pretrained_model.resize_token_embeddings(len(tokenizer)) before making the "
            "trainer, or set tokenizer.pad_token = tokenizer.eos_token"
        )


def default_adam(parameters: list[torch.nn.Parameter], learning_rate: float) -> torch.optim.Adam:
    """Adam, in torch's fused form where all parameters are floats on a CPU or a CUDA device."""
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.Adam(parameters, lr=learning_rate, fused=fused)


def clip_in_engine(accelerator: Accelerator, max_grad_norm: float | None) -> None:
    """Have DeepSpeed, which clips gradients within its engine, clip at `max_grad_norm`.

    A norm in its own configuration stands. Where that leaves it open accelerate would clip at 1.

    Raises:
        ValueError: if that configuration clips at another norm than the one given.
    """
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        return
    stated = plugin.deepspeed_config.get("gradient_clipping", "auto")
    if stated == "auto":
        plugin.deepspeed_config["gradient_clipping"] = max_grad_norm or 0.0
    elif max_grad_norm not in (None, stated):
        raise ValueError(
            f"max_grad_norm={max_grad_norm}, but DeepSpeed is configured to clip at "
            f"gradient_clipping={stated}: write one number in both places, or 'auto' there"
        )
