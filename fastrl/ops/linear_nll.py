"""Weighted negative log-likelihood from hidden states and the head; gradients in the forward."""

from __future__ import annotations

from typing import Any

import torch

from fastrl.ops._dispatch import Op
from fastrl.ops._inputs import require_floating, require_like
from fastrl.ops._linear_engines import Gradients, Head, Wanted, sweep, sweep_with_gradients
from fastrl.ops._linear_tiles import CppTiles, WholeRows
from fastrl.ops._once import once
from fastrl.ops.linear_token_logprobs import (
    checked_call,
    linear_reference,
    present,
    tiles,
    uncast,
)
from fastrl.ops.token_logprobs import require_targets


def _counts(nll: torch.Tensor, token_weight: torch.Tensor) -> torch.Tensor:
    return (token_weight != 0) | nll.isfinite()


def _weighted_sum(nll: torch.Tensor, token_weight: torch.Tensor) -> torch.Tensor:
    """Scalar; with a weight of 0 the nll does not count, not even if infinite."""
    return (nll * token_weight).where(_counts(nll, token_weight), 0.0).sum()


class _Reference:
    @staticmethod
    def forward(
        hidden: torch.Tensor, targets: torch.Tensor, token_weight: torch.Tensor, head: Head
    ) -> torch.Tensor:
        logp, _, _ = linear_reference(hidden, targets, head)
        # Masked before the product too: the gradient of what does not count is not 0 * infinity.
        return _weighted_sum(-logp.where(_counts(logp, token_weight), 0.0), token_weight)


LINEAR_NLL = Op(
    "linear_nll",
    reference=_Reference,
    cpp=CppTiles,
    cuda="fastrl.ops._cuda:Tiles",
    triton=WholeRows,
)


def _forward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    token_weight: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: float,
    softcap: float | None,
    scale: float,
    wanted: tuple[bool, bool, bool],
    backend: Any = None,
) -> tuple[torch.Tensor, ...]:
    """The sum, the nll of each token, and the gradients of the sum (empty where not wanted)."""
    require_targets(targets, weight.shape[0])
    backend = backend or tiles(LINEAR_NLL, hidden, weight, targets)
    head = Head(weight, bias, temperature, softcap, scale)
    found: Gradients = (None, None, None)
    with uncast(hidden.device):
        if any(wanted):
            scores, found = sweep_with_gradients(
                head, hidden, targets, -token_weight, Wanted(*wanted), backend
            )
        else:
            scores = sweep(head, hidden, targets, backend)
    nll = -scores.logp
    return (_weighted_sum(nll, token_weight), nll, *present(found, hidden))


torch.library.define(
    "fastrl::linear_nll",
    "(Tensor hidden, Tensor weight, Tensor targets, Tensor token_weight, Tensor? bias, "
    "float temperature, float? softcap, float scale, bool[3] wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.impl("fastrl::linear_nll", "default", _forward)


@torch.library.register_fake("fastrl::linear_nll")
def _fake(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    token_weight: torch.Tensor,
    *rest: Any,
) -> tuple[torch.Tensor, ...]:
    shapes = (tuple(hidden.shape), tuple(weight.shape), (weight.shape[0],))
    gradients = (
        hidden.new_empty(shape if wanted else (0,))
        for shape, wanted in zip(shapes, rest[-1], strict=True)
    )
    return (token_weight.new_empty(()), token_weight.new_empty(hidden.shape[0]), *gradients)


def _keep(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, ...]) -> None:
    _, nll, *gradients = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[3], nll, *gradients)
    ctx.mark_non_differentiable(*output[1:])


def _gradient(ctx: Any, grad: torch.Tensor | None, *_: Any) -> tuple[torch.Tensor | None, ...]:
    nothing = (None,) * len(ctx.needs_input_grad)
    if grad is None:
        return nothing
    token_weight, nll, *parts = ctx.saved_tensors
    needs = ctx.needs_input_grad
    with torch.no_grad():
        hidden, weight, bias = (
            part * grad.to(part.dtype) if want else None
            for part, want in zip(parts, (needs[0], needs[1], needs[4]), strict=True)
        )
        tokens = None
        if needs[3]:
            tokens = (nll * grad).where(_counts(nll, token_weight), 0.0)
    found = [once("linear_nll", gradient) for gradient in (hidden, weight, tokens, bias)]
    return (found[0], found[1], None, found[2], found[3], *nothing[5:])


torch.library.register_autograd("fastrl::linear_nll", _gradient, setup_context=_keep)


class _LinearNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[torch.Tensor, ...]:
        output = _forward(*inputs)
        _keep(ctx, inputs, output)
        return output

    backward = staticmethod(_gradient)


def linear_nll(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    token_weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """sum_i token_weight_i * -logp_i, with logp as `linear_token_logprobs` defines it.

    For losses whose weight on each token is known before its log-probability: cross-entropy, or a
    policy gradient with given advantages. The gradients of hidden, weight and bias are made in the
    forward, chunk by chunk (3 matrix products in all, no N x V tensor kept), and the backward
    multiplies them by the incoming scalar without waiting for a device.

    Args:
        hidden, weight, targets, bias, temperature, softcap, scale: as `linear_token_logprobs`.
        token_weight: (N,) floating point. Tokens of weight 0 do not count, even where their
            log-probability is -inf or NaN.

    Returns:
        a scalar, float32 (float64 for float64 inputs); differentiable once with respect to hidden,
        weight, bias and token_weight.

    Raises:
        TypeError, ValueError: as `linear_token_logprobs`, and for token_weight.
    """
    head, targets = checked_call(hidden, weight, targets, bias, temperature, softcap, scale)
    require_like("token_weight", require_floating("token_weight", token_weight), "targets", targets)
    token_weight = token_weight.to(torch.promote_types(hidden.dtype, torch.float32)).contiguous()
    recording = torch.is_grad_enabled()
    wanted = tuple(
        recording and tensor is not None and tensor.requires_grad
        for tensor in (hidden, weight, bias)
    )
    arguments = (hidden, weight, targets, token_weight, bias)
    numbers = (head.temperature, head.softcap, head.scale)
    if torch.compiler.is_compiling():
        return torch.ops.fastrl.linear_nll(*arguments, *numbers, wanted)[0]
    if LINEAR_NLL.pick(hidden, weight, targets) is _Reference:
        with uncast(hidden.device):
            require_targets(targets, head.vocab)
            return _Reference.forward(hidden, targets, token_weight, head)
    return _LinearNll.apply(*arguments, *numbers, wanted, None)[0]
