"""Rows to try a model on, and what a trial asks of it and leaves as it was."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fastrl.models.attention import PackingRefused
from fastrl.models.layout import Batch
from fastrl.types import Tokens

# Largest deviation, relative to the largest entry, by dtype of the parameters. (fp64 models still
# take rotary tables and softmax in fp32.)
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# transformers sets it where it has hooked the layers, which it does when asked for hidden states.
_CAPTURING = "_output_capturing_hooks_installed"
LENGTHS = (6, 4, 9)
COMMON = 3  # tokens the rows begin with alike
_PLAIN_LAYERS = ("full_attention", "sliding_attention")


class Disagreement(RuntimeError):
    """Two ways to the same numbers gave different ones."""


def close(name: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    """Raise unless the largest gap is within the tolerance, relative to the largest entry."""
    scale = want.abs().max().clamp(min=1e-6)
    gap = ((got - want).abs().max() / scale).item()
    if not gap <= tolerance:
        raise Disagreement(f"{name} differ by {gap:.1e} of their size")


def _embedding(model: PreTrainedModel) -> torch.Tensor:
    """(V, D) the matrix of the token embeddings."""
    embeddings: Any = model.get_input_embeddings()
    return embeddings.weight


def rows(model: PreTrainedModel) -> Tokens:
    """Three right-padded rows that begin alike and are scored from where they part."""
    table = _embedding(model)
    vocabulary = table.shape[0]
    width = max(LENGTHS)
    avoid = getattr(model.config, "pad_token_id", None)
    usable = [i for i in range(min(vocabulary, 4096)) if i != avoid]
    flat = [usable[(7 + 31 * i) % len(usable)] for i in range(len(LENGTHS) * width)]
    ids = torch.tensor(flat, device=table.device)
    count = len(LENGTHS)
    ids = ids.view(count, width)
    ids[:, :COMMON] = ids[0, :COMMON].clone()
    return Tokens(ids, [0] * count, list(LENGTHS), [COMMON] * count)


def row_of(tokens: Tokens, row: int) -> Tokens:
    """One row alone, without padding."""
    length = tokens.lengths[row]
    return Tokens(tokens.ids[row : row + 1, :length], [0], [length], [COMMON])


@contextmanager
def undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode inside; mode, random state and hooks as they were afterwards."""
    training = [module for module in model.modules() if module.training]
    hooks = {module: set(module._forward_hooks) for module in model.modules()}
    capturing = {module for module in hooks if _CAPTURING in module.__dict__}
    device = _embedding(model).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False):
        try:
            model.eval()
            yield
        finally:
            for module in training:
                module.training = True
            for module, before in hooks.items():
                for added in set(module._forward_hooks) - before:
                    del module._forward_hooks[added]
                if module not in capturing:
                    module.__dict__.pop(_CAPTURING, None)


@contextmanager
def embedded(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Makes the token embeddings a leaf, so that a gradient reaches them and no parameter."""
    leaves = []

    def cut(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = model.get_input_embeddings().register_forward_hook(cut)
    try:
        yield leaves
    finally:
        handle.remove()


def sliding_layers(config: Any) -> int:
    """How many layers see only a window, by what the config says."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        unknown = sorted({kind for kind in kinds if kind not in _PLAIN_LAYERS})
        if unknown:
            raise PackingRefused(f"layers of kind {', '.join(unknown)}")
        return sum(kind == "sliding_attention" for kind in kinds)
    if getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None):
        return config.num_hidden_layers
    return 0


def require_structure(model: PreTrainedModel) -> None:
    """Raise for a model that is not even tried packed."""
    if not getattr(model, "_supports_attention_backend", False):
        raise PackingRefused(
            f"{type(model).__name__} does not declare support for attention backends"
        )
    if "position_ids" not in inspect.signature(type(model.base_model).forward).parameters:
        raise PackingRefused(f"{type(model.base_model).__name__} takes no position_ids")
    if getattr(model.config, "reorder_and_upcast_attn", False):
        raise PackingRefused(
            "reorder_and_upcast_attn is computed by the model's own attention only"
        )
    if getattr(model.config, "output_attentions", False):
        raise PackingRefused("config.output_attentions asks for attention weights")
    sliding_layers(model.config)


def watched(batch: Batch) -> tuple[Batch, list[int | None]]:
    """A packed batch, and a list to which each layer that it passes adds its sliding window."""
    windows: list[int | None] = []
    segments = replace(batch.inputs["fastrl_segments"], windows=windows)
    return replace(batch, inputs={**batch.inputs, "fastrl_segments": segments}), windows


def require_windows(model: PreTrainedModel, windows: list[int | None]) -> None:
    """Raise unless the layers called our attention, with as many windows as the config says."""
    if not windows:
        raise PackingRefused("its layers do not call the registered attention function")
    if sum(window is not None for window in windows) != sliding_layers(model.config):
        raise PackingRefused("its sliding window does not reach the attention function")


def partitioned(model: PreTrainedModel) -> bool:
    """Whether parameters are spread over processes, so that the instance cannot run by itself."""
    return any(
        hasattr(parameter, "ds_id") or parameter.numel() == 0 or hasattr(parameter, "device_mesh")
        for parameter in model.parameters()
    )


def joins_in_order(model: PreTrainedModel) -> bool:
    """Whether an engine adds up gradients of several ranks in the order in which they come.

    ZeRO-1 and 2 lay them end to end as backward makes them, so on every rank backward has to take
    the same way through the parameters; otherwise one's gradient is added to another's.
    """
    return any(hasattr(parameter, "param_idx_in_group") for parameter in model.parameters())


def key(model: PreTrainedModel) -> tuple[str, torch.dtype]:
    """What a proof is good for: the device type and the dtype of the embeddings."""
    table = _embedding(model)
    return table.device.type, table.dtype


def told(error: Exception) -> str:
    """The reason a trial failed, in words."""
    named = isinstance(error, (PackingRefused, Disagreement))
    return str(error) if named else f"{type(error).__name__}: {error}"
