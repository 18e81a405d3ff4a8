"""Gradient checkpointing switched on, and off for a while, under whichever name a model has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def _method(model: Any, what: str) -> Any:
    """transformers 5 gave it a second name, and warns of the first."""
    named = f"activation_checkpointing_{what}"
    return getattr(model, named, None) or getattr(model, f"gradient_checkpointing_{what}")


def enable_gradient_checkpointing(
    model: Any, gradient_checkpointing_kwargs: dict[str, Any] | None = None
) -> Any:
    """Recompute activations in the backward pass instead of keeping them.

    The reentrant form needs inputs that require a gradient, which an adapter's base model does not
    give by itself: they are made to.

    Args:
        model: a transformers or PEFT model.
        gradient_checkpointing_kwargs: of `torch.utils.checkpoint.checkpoint`.

    Returns:
        the model.
    """
    _method(model, "enable")(gradient_checkpointing_kwargs)
    if (gradient_checkpointing_kwargs or {}).get("use_reentrant", True):
        model.enable_input_require_grads()
    return model


@contextmanager
def disable_gradient_checkpointing(
    model: Any, gradient_checkpointing_kwargs: dict[str, Any] | None = None
) -> Iterator[None]:
    """Inside, activations are kept; afterwards they are recomputed again if they were before.

    Args:
        model: a transformers or PEFT model.
        gradient_checkpointing_kwargs: for switching it on again.
    """
    was_on = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    if was_on:
        _method(model, "disable")()
    try:
        yield
    finally:
        if was_on:
            _method(model, "enable")(gradient_checkpointing_kwargs)
