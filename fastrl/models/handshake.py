"""What a model can be trusted with, found out by trying it on the model itself.

Three short rows are scored alone by the model's own forward, and again through the door: head path, packed
layout, one gradient. Only what agrees is used; parameters, gradients, mode and random state are left alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fastrl.models import attention, door, layout
from fastrl.models.attention import PackingRefused
from fastrl.types import Tokens

# Largest deviation, relative to the largest entry, by dtype of the parameters.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_LENGTHS = (6, 4, 9)
_PLAIN_LAYERS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Plan:
    """How a model is scored."""

    packed: bool
    head: door.Head | None  # None: through the model's own logits
    reason: str | None  # why not packed
    takes_positions: bool  # accepts position_ids
    counts_pads: bool  # left to itself, counts padding before a row as positions
    proven_on: tuple[str, torch.dtype]  # device type and dtype the rows were tried on


class Disagreement(RuntimeError):
    """Two ways to the same numbers gave different ones."""


def _close(name: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    scale = want.abs().max().clamp(min=1e-6)
    gap = ((got - want).abs().max() / scale).item()
    if not gap <= tolerance:
        raise Disagreement(f"{name} differ by {gap:.1e} of their size")


def _trial(model: PreTrainedModel) -> Tokens:
    """Three rows of different ids within the vocabulary, right-padded, scored from the second token."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    width = max(_LENGTHS)
    avoid = getattr(model.config, "pad_token_id", None)
    usable = [i for i in range(min(vocabulary, 4096)) if i != avoid]
    flat = [usable[(7 + 31 * i) % len(usable)] for i in range(len(_LENGTHS) * width)]
    ids = torch.tensor(flat, device=model.get_input_embeddings().weight.device)
    count = len(_LENGTHS)
    return Tokens(ids.view(count, width), [0] * count, list(_LENGTHS), [1] * count)


def _row(tokens: Tokens, row: int) -> Tokens:
    length = tokens.lengths[row]
    return Tokens(tokens.ids[row : row + 1, :length], [0], [length], [1])


@contextmanager
def _undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode and fixed random state inside; both as they were afterwards."""
    training = [module for module in model.modules() if module.training]
    device = model.get_input_embeddings().weight.device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False):
        try:
            model.eval()
            yield
        finally:
            for module in training:
                module.training = True


@contextmanager
def _embedded(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
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


def _scores(model: PreTrainedModel, plan: layout.Layout, head: door.Head | None) -> dict[str, Any]:
    """logp, hidden states and the embeddings' gradient of the sum of logp of the first 5 scored tokens."""
    with _embedded(model) as leaves, torch.enable_grad():
        request = door.Request(plan.batches, 1.0, head, want_hidden=True)
        logp, entropy, hidden = model(fastrl_request=request)
        (gradient,) = torch.autograd.grad(logp[: _LENGTHS[0] - 1].sum(), leaves[-1:])
    return {
        "log-probabilities": logp.detach(),
        "entropies": entropy.detach(),
        "hidden states": hidden.detach(),
        "gradient": gradient.detach().reshape(-1, gradient.shape[-1]),
    }


def _alone(model: PreTrainedModel, tokens: Tokens, head: door.Head | None) -> dict[str, Any]:
    """The same from each row by itself; the gradient is that of the first row."""
    rows = [
        _scores(model, layout.padded(_row(tokens, row), takes_positions=False), head)
        for row in range(len(tokens.lengths))
    ]
    joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    joined["gradient"] = rows[0]["gradient"]
    return joined


def _agree(got: dict[str, Any], want: dict[str, Any], tolerance: float) -> None:
    for name, wanted in want.items():
        _close(name, got[name], wanted, tolerance)


def _sliding_layers(config: Any) -> int:
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


def _structural_refusal(model: PreTrainedModel) -> str | None:
    """Why a model is not even tried packed, or None."""
    if not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not declare support for attention backends"
    if "position_ids" not in inspect.signature(type(model.base_model).forward).parameters:
        return f"{type(model.base_model).__name__} takes no position_ids"
    if getattr(model.config, "reorder_and_upcast_attn", False):
        return "reorder_and_upcast_attn is computed by the model's own attention only"
    if getattr(model.config, "output_attentions", False):
        return "config.output_attentions asks for attention weights"
    return None


def _prove_packed(
    model: PreTrainedModel,
    tokens: Tokens,
    head: door.Head | None,
    alone: dict[str, Any],
    tolerance: float,
) -> None:
    """Raise unless the packed rows give what the rows alone give and no gradient crosses rows."""
    reason = _structural_refusal(model)
    if reason is not None:
        raise PackingRefused(reason)
    sliding = _sliding_layers(model.config)
    attention.enable(model.config)
    plan = layout.packed(tokens)
    (batch,) = plan.batches
    segments = batch.inputs["fastrl_segments"]
    windows: list[int | None] = []
    inputs = {**batch.inputs, "fastrl_segments": replace(segments, windows=windows)}
    got = _scores(model, layout.Layout((replace(batch, inputs=inputs),), plan.frame), head)
    if not windows:
        raise PackingRefused("its layers do not call the registered attention function")
    if sum(window is not None for window in windows) != sliding:
        raise PackingRefused("its sliding window does not reach the attention function")
    end = segments.q[0][1]
    if got["gradient"][end:].abs().max() != 0:
        raise Disagreement("a gradient crosses from one packed row into another")
    # The row alone is fed its last token as well, which no score depends on.
    got["gradient"] = got["gradient"][:end]
    _agree(got, {**alone, "gradient": alone["gradient"][:end]}, tolerance)


def _counts_pads(model: PreTrainedModel, tokens: Tokens, tolerance: float) -> bool:
    """Whether two pads before a row change its scores when no positions are given."""
    row = _row(tokens, 0)
    length = row.lengths[0]
    ids = torch.cat([row.ids[:, :2], row.ids], dim=1)
    shifted = Tokens(ids, [2], [length], [1], [2])
    want = _scores(model, layout.padded(row, takes_positions=False), None)
    got = _scores(model, layout.padded(shifted, takes_positions=False), None)
    try:
        # Rotary tables are fp32 in any model, so shifted positions agree to fp32 at best.
        _close("scores", got["hidden states"], want["hidden states"], max(tolerance, 1e-4))
    except Disagreement:
        return True
    return False


def partitioned(model: PreTrainedModel) -> bool:
    """Whether parameters are spread over processes, so that the instance cannot be called by itself."""
    return any(
        hasattr(parameter, "ds_id") or parameter.numel() == 0 or hasattr(parameter, "device_mesh")
        for parameter in model.parameters()
    )


def key(model: PreTrainedModel) -> tuple[str, torch.dtype]:
    """What a proof is good for: the device type and the dtype of the embeddings."""
    weight = model.get_input_embeddings().weight
    return weight.device.type, weight.dtype


def examine(model: PreTrainedModel) -> Plan:
    """Try the model (with its door installed) and say how it is to be scored.

    Returns:
        the plan; `reason` says why it is not packed.
    """
    takes_positions = "position_ids" in inspect.signature(type(model).forward).parameters
    if partitioned(model):
        reason = "its parameters are partitioned over processes, so it cannot be tried by itself"
        return Plan(False, None, reason, takes_positions, True, key(model))
    tolerance = TOLERANCE.get(key(model)[1], 5e-2)
    tokens = _trial(model)
    head: door.Head | None = door.Head.of_config(model.config)
    reason = None
    with _undisturbed(model):
        try:
            alone = _alone(model, tokens, None)
            counts_pads = _counts_pads(model, tokens, tolerance)
        except Exception as error:  # noqa: BLE001 e.g. a dtype its kernels lack on this device
            reason = f"its own forward fails here ({type(error).__name__}: {error})"
            return Plan(False, None, reason, takes_positions, True, key(model))
        try:
            _agree(_alone(model, tokens, head), alone, tolerance)
        except Exception:  # noqa: BLE001 any failure of a foreign model's parts means: use its own forward
            head = None
        try:
            _prove_packed(model, tokens, head, alone, tolerance)
        except Exception as error:  # noqa: BLE001 as above; the reason is reported
            attention.disable(model.config)
            named = isinstance(error, (PackingRefused, Disagreement))
            reason = str(error) if named else f"{type(error).__name__}: {error}"
    return Plan(reason is None, head, reason, takes_positions, counts_pads, key(model))
