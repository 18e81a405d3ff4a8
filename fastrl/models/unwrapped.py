"""A prepared model without its wrappers, in a state to generate."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from fastrl.legacy.generation import pinned
from fastrl.models.wrapper import PreTrainedModelWrapper


@contextmanager
def _unwrapped(
    model: nn.Module,
    accelerator: Any,
    gather_deepspeed3_params: bool = True,
    generation_kwargs: Mapping[str, Any] | None = None,
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
    *,
    is_peft_model: bool = False,
) -> Iterator[nn.Module]:
    unwrapped = accelerator.unwrap_model(model)
    inner = unwrapped.pretrained_model if hasattr(unwrapped, "pretrained_model") else unwrapped
    with ExitStack() as stack:
        if is_peft_model:
            if not hasattr(inner, "disable_adapter"):
                raise ValueError(f"is_peft_model=True, but {type(inner).__name__} has no adapter")
            stack.enter_context(inner.disable_adapter())
        if generation_kwargs:
            stack.enter_context(_generation_config(inner, generation_kwargs))
        if getattr(inner, "is_gradient_checkpointing", False):
            inner.gradient_checkpointing_disable()
            stack.callback(inner.gradient_checkpointing_enable, gradient_checkpointing_kwargs)
        yield unwrapped


@functools.wraps(_unwrapped, assigned=())
def unwrap_model_for_generation(
    model: nn.Module, accelerator: Any, *args: Any, **kwargs: Any
) -> Any:
    """A context whose value is the model to call `generate` on; checkpointing is off in it.

    The third place was `is_peft_model` in TRL 0.11: it is read so for a model with a value head,
    which that release was for, and where `set_api` pins "0.7" or "0.11".

    Args:
        model: as the accelerator prepared it.
        accelerator: an `accelerate.Accelerator`.
        gather_deepspeed3_params: under ZeRO-3 weights are gathered layer by layer, whatever it is.
        generation_kwargs: fields of the model's generation_config to set meanwhile.
        gradient_checkpointing_kwargs: for switching checkpointing on again, if it was on.
        is_peft_model: switch the adapters off meanwhile, so that the reference generates.

    Raises:
        ValueError: `is_peft_model` for a model without adapters.
    """
    if args and _means_peft(accelerator.unwrap_model(model)):
        return _unwrapped(model, accelerator, *args[1:], is_peft_model=args[0], **kwargs)
    return _unwrapped(model, accelerator, *args, **kwargs)


def _means_peft(model: nn.Module) -> bool:
    """Whether a bare third argument is TRL 0.11's."""
    return isinstance(model, PreTrainedModelWrapper) or pinned() in ("0.7", "0.11")


@contextmanager
def _generation_config(model: nn.Module, fields: Mapping[str, Any]) -> Iterator[None]:
    """The model's generation_config with these fields, as it was afterwards."""
    holder: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = holder.generation_config
    holder.generation_config = copy.deepcopy(before)
    holder.generation_config.update(**fields)
    try:
        yield
    finally:
        holder.generation_config = before
