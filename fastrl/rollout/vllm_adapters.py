"""Weights of PEFT layers with their adapters merged in, made aside: the trained ones stay as is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Full = Callable[[torch.Tensor], torch.Tensor]  # a parameter -> all of it, in this process


def _kinds() -> Any:
    """The module of PEFT that names its wrappers; None where PEFT cannot have wrapped anything."""
    try:
        import peft
    except ImportError:
        return None
    return peft


def is_adapted(module: nn.Module) -> bool:
    """Whether a module is a base layer with adapters around it."""
    if _kinds() is None:
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


def is_saved_copy(module: nn.Module) -> bool:
    """Whether a module is trained whole beside its original (`modules_to_save`)."""
    if _kinds() is None:
        return False
    from peft.utils.other import AuxiliaryTrainingWrapper

    return isinstance(module, AuxiliaryTrainingWrapper)


def check_adapted(path: str, module: nn.Module) -> None:
    """Refuse an adapter whose weights cannot be put into one matrix.

    Raises:
        ValueError: naming the module.
    """
    if is_saved_copy(module) and not hasattr(module, "modules_to_save"):
        raise ValueError(
            f"peft_config: use_vllm cannot send {type(module).__name__} at {path}; use LoRA or "
            "modules_to_save"
        )
    if is_adapted(module) and not hasattr(module, "merge"):
        raise ValueError(f"peft_config: {type(module).__name__} at {path} cannot be merged")


def chosen(wrapper: Any) -> nn.Module:
    """The copy that is in force: the active adapter's, or the original."""
    if not wrapper.disable_adapters:
        for name in wrapper.active_adapters:
            if name in wrapper.modules_to_save:
                return wrapper.modules_to_save[name]
    return wrapper.original_module


def merged(layer: Any, full: Full) -> list[tuple[str, torch.Tensor]]:
    """The base layer's parameters by name, with the active adapters merged into copies.

    Args:
        layer: a layer of PEFT.
        full: gives the whole of a parameter that is spread over processes.
    """
    if layer.disable_adapters or layer.merged:
        named = layer.get_base_layer().named_parameters()
        return [(name, full(parameter)) for name, parameter in named]
    twin = _twin(layer, full)
    _merge(twin)
    return [(name, p.detach()) for name, p in twin.get_base_layer().named_parameters()]


def _twin(module: nn.Module, full: Full) -> Any:
    """The module over again with parameters of its own; all else is shared.

    Not by `copy`: a module's hooks may hold the whole trainer.
    """
    made: Any = object.__new__(type(module))
    made.__dict__.update(module.__dict__)
    made.__dict__["_parameters"] = {
        name: None if p is None else nn.Parameter(full(p).clone(), requires_grad=False)
        for name, p in module._parameters.items()
    }
    made.__dict__["_modules"] = {
        name: None if child is None else _twin(child, full)
        for name, child in module._modules.items()
    }
    for name, kind in (("merged_adapters", list), ("_caches", dict)):
        if name in made.__dict__:
            made.__dict__[name] = kind(made.__dict__[name])
    return made


def _merge(twin: Any) -> None:
    """Merge a twin's adapters, those nearest the weights first."""
    base = twin._modules.get("base_layer")
    if is_adapted(base):
        _merge(base)
    twin.merge()
