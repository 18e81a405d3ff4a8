"""Log-probability of given tokens and entropy, from logits.

With z = logits / temperature and lse = log sum exp z:  logp = z_y - lse,  H = lse - sum_j p_j z_j,
d logp / d z_j = [j = y] - p_j,  d H / d z_j = -p_j (log p_j + H). Where p_y is near 1, logp is
-log1p of the other columns' share, which keeps digits that z_y - lse has lost.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from fastrl.ops import _native
from fastrl.ops._dispatch import Op, is_plain
from fastrl.ops._inputs import (
    can_ask,
    require_device,
    require_floating,
    require_positive,
    require_tensor,
)
from fastrl.ops._once import once

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _near_certainty_too(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p, p), (N, V) each, of logits; log p of a token that is almost certain keeps its digits.

    There z - lse has few left, and 1 - p, the sum of the others, has all of them.
    """
    logps = torch.log_softmax(z, dim=1)
    p = logps.exp()
    top = z.argmax(dim=1, keepdim=True)
    others = p.scatter(1, top, 0.0).sum(dim=1, keepdim=True)
    near_one = torch.log1p(-others.clamp(max=0.5))
    near_one = torch.where(others < 0.5, near_one, logps.gather(1, top))
    return logps.scatter(1, top, near_one), p


class _Reference:
    @staticmethod
    def forward(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> Three:
        """(N, V), (N,) -> logp, entropy, lse, each (N,); differentiable by torch's own autograd."""
        z = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        valid = (targets >= 0) & (targets < z.shape[1])
        target = targets.where(valid, 0)[:, None]  # (N, 1)
        lse = torch.logsumexp(z, dim=1)
        logps, p = _near_certainty_too(z)
        entropy = -(p * logps.masked_fill(p == 0, 0.0)).sum(dim=1)
        logp = logps.gather(1, target)[:, 0]
        nan = torch.full_like(logp, math.nan)
        return logp.where(valid, nan), entropy.where(valid, nan), lse

    @staticmethod
    def backward(
        logits: torch.Tensor,
        targets: torch.Tensor,
        lse: torch.Tensor,
        entropy: torch.Tensor,
        grad_logp: torch.Tensor | None,
        grad_entropy: torch.Tensor | None,
        temperature: float,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """d logits (N, V) of sum(grad_logp * logp + grad_entropy * entropy); rows without are 0."""
        z = logits.to(entropy.dtype) / temperature
        logps, p = _near_certainty_too(z)
        zeros = torch.zeros_like(entropy)
        g = zeros if grad_logp is None else grad_logp
        h = zeros if grad_entropy is None else grad_entropy
        valid = (targets >= 0) & (targets < z.shape[1])
        target = targets.where(valid, 0)[:, None]
        others = p.scatter(1, target, 0.0)
        d_logp = (-others).scatter(1, target, others.sum(dim=1, keepdim=True))
        d_entropy = -p * (logps.masked_fill(p == 0, 0.0) + entropy[:, None])
        d_logits = (g[:, None] * d_logp + h[:, None] * d_entropy) / temperature
        d_logits = d_logits.masked_fill(~valid[:, None], math.nan)
        counts = ((g != 0) | (h != 0))[:, None]
        result = d_logits.where(counts, torch.zeros_like(d_logits)).to(logits.dtype)
        return result if out is None else out.copy_(result)


class _Cpp:
    @staticmethod
    def forward(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> Three:
        logp, entropy, lse = (torch.empty(logits.shape[0]) for _ in range(3))
        _native.load("cpu").token_logprobs_forward(
            logits.data_ptr(),
            _native.DTYPE_CODE[logits.dtype],
            _native.pointer(targets),
            *logits.shape,
            logits.stride(0),
            temperature,
            *map(_native.pointer, (logp, entropy, lse)),
            torch.get_num_threads(),
        )
        return logp, entropy, lse

    @staticmethod
    def backward(
        logits: torch.Tensor,
        targets: torch.Tensor,
        lse: torch.Tensor,
        entropy: torch.Tensor,
        grad_logp: torch.Tensor | None,
        grad_entropy: torch.Tensor | None,
        temperature: float,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if out is None:
            out = torch.empty(logits.shape, dtype=logits.dtype)
        exact_lse = lse.double()
        _native.load("cpu").token_logprobs_backward(
            logits.data_ptr(),
            _native.DTYPE_CODE[logits.dtype],
            _native.pointer(targets),
            *logits.shape,
            logits.stride(0),
            0,
            temperature,
            _native.pointer(exact_lse),
            _native.pointer(entropy),
            0 if grad_logp is None else _native.pointer(grad_logp),
            0 if grad_entropy is None else _native.pointer(grad_entropy),
            0,
            out.data_ptr(),
            out.stride(0),
            torch.get_num_threads(),
        )
        return out


# A namespace has
#   forward(logits (N, V), targets (N,), temperature) -> logp, entropy, lse, each (N,) float32
#   backward(logits, targets, lse, entropy, grad_logp | None, grad_entropy | None, temperature,
#            out=None) -> d logits in the logits' dtype; `out` may be the logits themselves.
# Logits have a last stride of 1 and any first stride; targets are int64; gradients are contiguous.
# A row whose gradients are all 0 gets zeros, whatever its logits.
TOKEN_LOGPROBS = Op(
    "token_logprobs",
    reference=_Reference,
    cpp=_Cpp,
    cuda="fastrl.ops._cuda:TokenLogprobs",
    triton="fastrl.kernels.token_logprobs",
)


def require_targets(targets: torch.Tensor, vocab: int) -> None:
    """Check that targets lie in [0, vocab), where asking costs no wait for a device.

    Raises:
        ValueError: with the first offender and its place.
    """
    if targets.numel() == 0 or not can_ask(targets):
        return
    low, high = torch.aminmax(targets)
    if low >= 0 and high < vocab:
        return
    place = ((targets < 0) | (targets >= vocab)).nonzero()[0].tolist()
    value = targets[tuple(place)].item()
    raise ValueError(
        f"targets{place} is {value}, outside [0, {vocab}); give masked positions any token id "
        "and multiply their log-probabilities by 0"
    )


def _matrices(logits: torch.Tensor) -> list[torch.Tensor]:
    """The logits as (n, V) matrices in order, without a copy where the last dimension is dense.

    `logits[:, :-1]` of a batch is one matrix per row of the batch.
    """
    vocab = logits.shape[-1]
    if logits.stride(-1) != 1 and vocab > 1:
        logits = logits.contiguous()
    if logits.dim() <= 2:
        return [logits.view(-1, vocab)]
    try:
        return [logits.view(-1, vocab)]
    except RuntimeError:
        return [matrix for part in logits.unbind(0) for matrix in _matrices(part)]


def _forward(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> Three:
    """As a namespace's forward, for logits (..., V)."""
    require_targets(targets, logits.shape[-1])
    backend = TOKEN_LOGPROBS.pick(logits, targets)
    matrices = _matrices(logits)
    pieces = targets.reshape(-1).split([len(matrix) for matrix in matrices])
    results = [
        backend.forward(matrix, piece, temperature)
        for matrix, piece in zip(matrices, pieces, strict=True)
    ]
    logp, entropy, lse = (
        (column[0] if len(column) == 1 else torch.cat(column)).view(targets.shape)
        for column in zip(*results, strict=True)
    )
    return logp, entropy, lse


def _backward(
    logits: torch.Tensor,
    targets: torch.Tensor,
    lse: torch.Tensor,
    entropy: torch.Tensor,
    grad_logp: torch.Tensor | None,
    grad_entropy: torch.Tensor | None,
    temperature: float,
) -> torch.Tensor:
    """As a namespace's backward, for logits (..., V)."""
    backend = TOKEN_LOGPROBS.pick(logits, targets)
    matrices = _matrices(logits)
    sizes = [len(matrix) for matrix in matrices]
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    rows = [out.view(-1, logits.shape[-1])] + [t.reshape(-1) for t in (targets, lse, entropy)]
    pieces = [part.split(sizes) for part in rows]
    for grad in (grad_logp, grad_entropy):
        none = [None] * len(sizes)
        pieces.append(none if grad is None else grad.reshape(-1).contiguous().split(sizes))
    for matrix, part, *columns in zip(matrices, *pieces, strict=True):
        backend.backward(matrix, *columns, temperature, out=part)
    return out


torch.library.define(
    "fastrl::token_logprobs",
    "(Tensor logits, Tensor targets, float temperature) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "fastrl::token_logprobs_backward",
    "(Tensor logits, Tensor targets, Tensor lse, Tensor entropy, Tensor? grad_logp, "
    "Tensor? grad_entropy, float temperature) -> Tensor",
)
torch.library.impl("fastrl::token_logprobs", "default", _forward)
torch.library.impl("fastrl::token_logprobs_backward", "default", _backward)


@torch.library.register_fake("fastrl::token_logprobs")
def _fake_forward(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> Three:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logp, entropy, lse = (logits.new_empty(targets.shape, dtype=dtype) for _ in range(3))
    return logp, entropy, lse


@torch.library.register_fake("fastrl::token_logprobs_backward")
def _fake_backward(logits: torch.Tensor, *_: object) -> torch.Tensor:
    return logits.new_empty(logits.shape)


def _keep(ctx: Any, inputs: tuple, output: Three) -> None:
    logits, targets, temperature = inputs
    _, entropy, lse = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, targets, lse, entropy)
    ctx.temperature = temperature
    ctx.mark_non_differentiable(lse)


def _gradient(
    run: Callable[..., torch.Tensor],
    ctx: Any,
    grad_logp: torch.Tensor | None,
    grad_entropy: torch.Tensor | None,
    _: torch.Tensor | None,
) -> tuple[torch.Tensor | None, None, None]:
    if not ctx.needs_input_grad[0] or (grad_logp is None and grad_entropy is None):
        return None, None, None
    with torch.no_grad():
        gradient = run(*ctx.saved_tensors, grad_logp, grad_entropy, ctx.temperature)
    return once("token_logprobs", gradient), None, None


torch.library.register_autograd(
    "fastrl::token_logprobs",
    functools.partial(_gradient, torch.ops.fastrl.token_logprobs_backward),
    setup_context=_keep,
)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
    ) -> Three:
        output = _forward(logits, targets, temperature)
        _keep(ctx, (logits, targets, temperature), output)
        return output

    backward = staticmethod(functools.partial(_gradient, _backward))


def require_ids(targets: object, rows: tuple[int, ...], what: str) -> torch.Tensor:
    """The targets as int64.

    Raises:
        TypeError, ValueError: if they are not integers, one for each row.
    """
    ids = require_tensor("targets", targets)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"targets must be integers, not {ids.dtype}; call targets.long()")
    if tuple(ids.shape) != rows:
        raise ValueError(f"targets has shape {tuple(ids.shape)}; {what} ask for {rows}")
    return ids.long().contiguous()


def token_logprobs(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of the targets, and the entropy, under softmax(logits / temperature).

    One sweep over the logits, sums in float32 and wider, whatever the logits' dtype; the only
    large tensor of a backward is the gradient it returns. Logits of -inf are tokens that cannot
    be: they add nothing to either result nor to any gradient. A row whose incoming gradients are
    0 gets a gradient of 0, even where it holds NaN. Under autocast nothing is cast.

    Args:
        logits: (..., V) floating point; slices such as `logits[:, :-1]` are not copied. Never
            written to.
        targets: (...) integers in [0, V).
        temperature: what the logits are divided by.

    Returns:
        logp and entropy in nats, each (...), float32 (float64 for float64 logits), both
        differentiable, once.

    Raises:
        TypeError: logits are not floating point, targets not integers, the temperature no number.
        ValueError: shapes or devices do not fit, the temperature is not positive, or (on the CPU)
            a target lies outside [0, V). On a GPU such a row is NaN.
    """
    require_floating("logits", logits)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must be (..., V) with V > 0, not {tuple(logits.shape)}")
    targets = require_ids(targets, tuple(logits.shape[:-1]), f"logits {tuple(logits.shape)}")
    require_device("targets", targets, "logits", logits)
    temperature = require_positive("temperature", temperature)
    if torch.compiler.is_compiling():
        return torch.ops.fastrl.token_logprobs(logits, targets, temperature)[:2]
    if not is_plain(logits):
        rows = logits.reshape(-1, logits.shape[-1])
        logp, entropy, _ = TOKEN_LOGPROBS.pick(logits).forward(rows, targets.view(-1), temperature)
        return logp.view(targets.shape), entropy.view(targets.shape)
    return _TokenLogprobs.apply(logits, targets, temperature)[:2]
