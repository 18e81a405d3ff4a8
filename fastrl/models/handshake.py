"""What a model can be trusted with, found out by trying it on the model itself.

Three short rows are scored alone by the model's own forward, and again through the door: head
path, packed layout, one gradient. Only what agrees is used; parameters, gradients, mode and
random state are left alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from fastrl.models import activations, attention, door, layout
from fastrl.models.attention import PackingRefused
from fastrl.models.layout import Batch
from fastrl.types import Shared, Tokens

# Largest deviation, relative to the largest entry, by dtype of the parameters. (fp64 models still
# take rotary tables and softmax in fp32.)
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# transformers sets it where it has hooked the layers, which it does when asked for hidden states.
_CAPTURING = "_output_capturing_hooks_installed"
_LENGTHS = (6, 4, 9)
_COMMON = 3  # tokens the rows begin with alike; the gradient is of row 0's scores after them
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
    head_reason: str | None = None  # why the head is not used by itself
    shares_prefix: bool = False  # what spans begin with alike is fed once
    prefix_reason: str | None = None  # why not, though packed


# Row 0's scores after the common tokens, among its scores from the second token on.
_AFTER = slice(_COMMON - 1, _LENGTHS[0] - 1)


class Disagreement(RuntimeError):
    """Two ways to the same numbers gave different ones."""


def _close(name: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    scale = want.abs().max().clamp(min=1e-6)
    gap = ((got - want).abs().max() / scale).item()
    if not gap <= tolerance:
        raise Disagreement(f"{name} differ by {gap:.1e} of their size")


def _trial(model: PreTrainedModel) -> Tokens:
    """Three right-padded rows that begin alike, scored from the second token on."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    width = max(_LENGTHS)
    avoid = getattr(model.config, "pad_token_id", None)
    usable = [i for i in range(min(vocabulary, 4096)) if i != avoid]
    flat = [usable[(7 + 31 * i) % len(usable)] for i in range(len(_LENGTHS) * width)]
    ids = torch.tensor(flat, device=model.get_input_embeddings().weight.device)
    count = len(_LENGTHS)
    ids = ids.view(count, width)
    ids[:, :_COMMON] = ids[0, :_COMMON].clone()
    return Tokens(ids, [0] * count, list(_LENGTHS), [1] * count)


def _row(tokens: Tokens, row: int) -> Tokens:
    length = tokens.lengths[row]
    return Tokens(tokens.ids[row : row + 1, :length], [0], [length], [1])


@contextmanager
def _undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode inside; mode, random state and hooks as they were afterwards."""
    training = [module for module in model.modules() if module.training]
    hooks = {module: set(module._forward_hooks) for module in model.modules()}
    capturing = {module for module in hooks if _CAPTURING in module.__dict__}
    device = model.get_input_embeddings().weight.device
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


def _scores(
    model: PreTrainedModel,
    batches: tuple[Batch, ...],
    head: door.Head | None,
    gradient: slice | None = None,
) -> dict[str, torch.Tensor]:
    """Scores of all places; on request the gradient of some summed logp by the embeddings."""
    request = door.Request(batches, 1.0, head, want_hidden=True)
    if gradient is None:
        with torch.no_grad():
            logp, entropy, _, hidden, *_ = model(fastrl_request=request)
        return {"log-probabilities": logp, "entropies": entropy, "hidden states": hidden}
    with _embedded(model) as leaves, torch.enable_grad():
        logp, entropy, _, hidden, *_ = model(fastrl_request=request)
        (by,) = torch.autograd.grad(logp[gradient].sum(), leaves[-1:])
    return {
        "log-probabilities": logp.detach(),
        "entropies": entropy.detach(),
        "hidden states": hidden.detach(),
        "gradients": by.reshape(-1, by.shape[-1]),
    }


def _alone(model: PreTrainedModel, tokens: Tokens) -> dict[str, torch.Tensor]:
    """Each row by itself through the model's own forward, joined; the gradient is that of row 0."""
    rows = [
        _scores(model, layout.padded(_row(tokens, row), False).batches, None, by)
        for row, by in enumerate((_AFTER, None, None))
    ]
    names = [name for name in rows[0] if name != "gradients"]
    joined = {name: torch.cat([row[name] for row in rows]) for name in names}
    # Nothing scored depends on a row's last token, which packed rows leave out.
    return {**joined, "gradients": rows[0]["gradients"][:-1]}


def _agree(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, given in got.items():
        _close(name, given, want[name], tolerance)


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
    alone: dict[str, torch.Tensor],
    tolerance: float,
) -> None:
    """Raise unless the packed rows give what the rows alone give and no gradient crosses rows."""
    reason = _structural_refusal(model)
    if reason is not None:
        raise PackingRefused(reason)
    sliding = _sliding_layers(model.config)
    attention.enable(model.config)
    (batch,) = layout.packed(tokens).batches
    segments = batch.inputs["fastrl_segments"]
    windows: list[int | None] = []
    inputs = {**batch.inputs, "fastrl_segments": replace(segments, windows=windows)}
    got = _scores(model, (replace(batch, inputs=inputs),), head, _AFTER)
    if not windows:
        raise PackingRefused("its layers do not call the registered attention function")
    if sum(window is not None for window in windows) != sliding:
        raise PackingRefused("its sliding window does not reach the attention function")
    _agree_within(segments.lengths[0], got, alone, tolerance)


def _agree_within(
    end: int, got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], tolerance: float
) -> None:
    """As `_agree`, row 0 being all that its gradient may reach: the first `end` tokens fed."""
    if got["gradients"][end:].abs().max() != 0:
        raise Disagreement("a gradient crosses from one packed row into another")
    _agree({**got, "gradients": got["gradients"][:end]}, want, tolerance)


def _prove_shared(
    model: PreTrainedModel,
    tokens: Tokens,
    head: door.Head | None,
    alone: dict[str, torch.Tensor],
    tolerance: float,
) -> None:
    """Raise unless rows whose common tokens are fed once give what they give alone."""
    group = Shared(tuple(range(len(_LENGTHS))), _COMMON)
    shared = replace(tokens, scored=[_COMMON] * len(_LENGTHS), shared=(group,))
    places = layout.packed(shared, share=True)
    got = _scores(model, places.batches, head, slice(0, _LENGTHS[0] - _COMMON))
    kept = np.concatenate([np.arange(length - 1) >= _COMMON - 1 for length in _LENGTHS])
    scored = torch.from_numpy(np.flatnonzero(kept)).to(tokens.ids.device)
    want = {name: found[scored] for name, found in alone.items() if name != "gradients"}
    want["gradients"] = alone["gradients"]
    _agree_within(_LENGTHS[0] - 1, got, want, tolerance)


def _counts_pads(
    model: PreTrainedModel, tokens: Tokens, alone: dict[str, torch.Tensor], tolerance: float
) -> bool:
    """Whether two pads before row 0 change its scores when no positions are given."""
    row = _row(tokens, 0)
    length = row.lengths[0]
    ids = torch.cat([row.ids[:, :2], row.ids], dim=1)
    shifted = Tokens(ids, [2], [length], [1], [2])
    got = _scores(model, layout.padded(shifted, takes_positions=False).batches, None)
    want = alone["hidden states"][: length - 1]
    try:
        # Rotary tables are fp32 in any model, so shifted positions agree to fp32 at best.
        _close("hidden states", got["hidden states"], want, max(tolerance, 1e-4))
    except Disagreement:
        return True
    return False


def partitioned(model: PreTrainedModel) -> bool:
    """Whether parameters are spread over processes, so that the instance cannot run by itself."""
    return any(
        hasattr(parameter, "ds_id") or parameter.numel() == 0 or hasattr(parameter, "device_mesh")
        for parameter in model.parameters()
    )


def key(model: PreTrainedModel) -> tuple[str, torch.dtype]:
    """What a proof is good for: the device type and the dtype of the embeddings."""
    weight = model.get_input_embeddings().weight
    return weight.device.type, weight.dtype


def _told(error: Exception) -> str:
    named = isinstance(error, (PackingRefused, Disagreement))
    return str(error) if named else f"{type(error).__name__}: {error}"


def examine(model: PreTrainedModel) -> Plan:
    """Try the model (with its door installed) and say how it is to be scored.

    Returns:
        the plan; `reason` says why it is not packed.
    """
    takes_positions = "position_ids" in inspect.signature(type(model).forward).parameters
    if partitioned(model):
        reason = "its parameters are partitioned over processes, so it cannot run by itself"
        return Plan(False, None, reason, takes_positions, True, key(model))
    tolerance = TOLERANCE.get(key(model)[1], 5e-2)
    tokens = _trial(model)
    head: door.Head | None = door.Head.of_config(model.config)
    reason = head_reason = prefix_reason = None
    with _undisturbed(model):
        try:
            alone = _alone(model, tokens)
            counts_pads = _counts_pads(model, tokens, alone, tolerance)
        except Exception as error:  # e.g. a dtype its kernels lack on this device
            reason = f"its own forward fails here ({_told(error)})"
            return Plan(False, None, reason, takes_positions, True, key(model))
        activations.fuse(model)
        # Whatever a foreign model's parts fail with means: its own forward; the reason is reported.
        try:
            batches = layout.padded(tokens, takes_positions=False).batches
            _agree(_scores(model, batches, head), alone, tolerance)
        except Exception as error:
            head, head_reason = None, _told(error)
        try:
            _prove_packed(model, tokens, head, alone, tolerance)
        except Exception as error:
            attention.disable(model.config)
            reason = _told(error)
        try:
            if reason is None:
                _prove_shared(model, tokens, head, alone, tolerance)
        except Exception as error:
            prefix_reason = _told(error)
    return Plan(
        packed=reason is None,
        head=head,
        reason=reason,
        takes_positions=takes_positions,
        counts_pads=counts_pads,
        proven_on=key(model),
        head_reason=head_reason,
        shares_prefix=reason is None and prefix_reason is None,
        prefix_reason=prefix_reason,
    )
