"""The frozen copy of a model that PPO's KL penalty is measured against."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from fastrl.models import trial

# Where the layers of a model family lie; `{layer}` is the first layer that is not shared.
LAYER_PATTERNS = (
    "transformer.h.{layer}",
    "model.decoder.layers.{layer}",
    "gpt_neox.layers.{layer}",
    "model.layers.{layer}",
)

Model = TypeVar("Model", bound=nn.Module)


def _first_unshared(names: list[str], layer: int, pattern: str | None) -> int:
    """Index of the first parameter that belongs to the given layer."""
    if pattern is not None and "{layer}" not in pattern:
        raise ValueError(
            f"pattern={pattern!r} must hold '{{layer}}', as in 'transformer.h.{{layer}}'"
        )
    for candidate in LAYER_PATTERNS if pattern is None else (pattern,):
        wanted = candidate.replace("{layer}", str(layer))
        for index, name in enumerate(names):
            if f"{wanted}." in f"{name}.":
                return index
    tried = "no known layer pattern" if pattern is None else f"the pattern {pattern!r}"
    raise ValueError(
        f"Layer pattern could not be matched: {tried} names layer {layer} of this "
        "model; give pattern= as in 'transformer.h.{layer}', and fewer shared layers than there are"
    )


def _copy_of_shares(model: Any) -> Any:
    """A copy of a model partitioned by ZeRO-3, each process copying its own share."""
    import deepspeed

    # As for any model that transformers makes under ZeRO-3, no process ever holds it whole.
    made = type(model)._from_config(copy.deepcopy(model.config), dtype=model.dtype)
    held = dict(model.named_parameters())
    for name, parameter in made.named_parameters():
        if hasattr(held[name], "ds_tensor"):
            parameter.ds_tensor.data.copy_(held[name].ds_tensor.data)
        else:
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(held[name].data)
    for name, buffer in made.named_buffers():
        buffer.data.copy_(model.get_buffer(name).data)
    return made.requires_grad_(False).eval()


def create_reference_model(
    model: Model, num_shared_layers: int | None = None, pattern: str | None = None
) -> Model:
    """A frozen copy in evaluation mode, for all or for the upper layers only.

    With `num_shared_layers` everything before that layer (embeddings included) is one storage for
    both models and frozen in the trained one as well; only the rest is copied.

    Args:
        model: a value-head, transformers or PEFT model.
        num_shared_layers: how many of the first layers to share; None copies everything.
        pattern: the name of a layer with `{layer}` in it, where the known ones do not fit.

    Raises:
        ValueError: for what is no model or no number of layers, if no parameter matches the
            pattern, or under ZeRO-3 for a wrapped model or shared layers.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch module, got {type(model).__name__}")
    if num_shared_layers is not None:
        whole = isinstance(num_shared_layers, int) and not isinstance(num_shared_layers, bool)
        if not whole or num_shared_layers < 0:
            raise ValueError(
                f"num_shared_layers={num_shared_layers!r}: a whole number of at least 0 is needed, "
                "or None for a copy of everything"
            )
    if trial.partitioned(model):
        if num_shared_layers is not None or not isinstance(model, PreTrainedModel):
            raise ValueError(
                "create_reference_model copies a transformers model whole where DeepSpeed ZeRO-3 "
                "has partitioned it, but neither shares layers nor copies a wrapped one; load the "
                "reference by from_pretrained and give it to the trainer as ref_model"
            )
        return _copy_of_shares(model)
    shared = []
    if num_shared_layers is not None:
        named = list(model.named_parameters())
        end = _first_unshared([name for name, _ in named], num_shared_layers, pattern)
        shared = [parameter.requires_grad_(False) for _, parameter in named[:end]]
    # `deepcopy` takes what its memo holds as copied already: these stay one object in both models.
    reference = copy.deepcopy(model, {id(parameter): parameter for parameter in shared})
    return reference.requires_grad_(False).eval()
