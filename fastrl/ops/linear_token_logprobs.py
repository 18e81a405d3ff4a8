"""Log-probability of given tokens and entropy, from hidden states and the head's matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastrl.ops._dispatch import Op
from fastrl.ops._inputs import needs_gradient, require_device, require_floating, require_positive
from fastrl.ops._linear_engines import (
    Gradients,
    Head,
    Wanted,
    gradients,
    sweep,
    sweep_with_gradients,
)
from fastrl.ops._linear_tiles import STATISTICS, CppTiles, Scores, WholeRows, statistics_of
from fastrl.ops._logits_budget import logits_budget
from fastrl.ops._once import once
from fastrl.ops.token_logprobs import (
    TOKEN_LOGPROBS,
    require_ids,
    require_targets,
)


def reference_logits(hidden: torch.Tensor, head: Head) -> torch.Tensor:
    """z (N, V) by torch's own autograd, in float32 or wider."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    bias = None if head.bias is None else head.bias.to(wide)
    z = torch.nn.functional.linear(hidden.to(wide), head.weight.to(wide), bias) * head.scale
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    return z / head.temperature


def linear_reference(
    hidden: torch.Tensor, targets: torch.Tensor, head: Head
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """logp (N,), entropy (N,), statistics (3, N) by torch's own autograd, in float32 or wider."""
    z = reference_logits(hidden, head)
    logp, entropy, lse = TOKEN_LOGPROBS.differentiable().forward(z, targets, 1.0)
    return logp, entropy, statistics_of(z.detach(), targets, lse.detach(), 1.0)


class _Reference:
    forward = staticmethod(linear_reference)


# The namespaces other than the reference are those of _linear_tiles.py.
LINEAR = Op(
    "linear_token_logprobs",
    reference=_Reference,
    cpp=CppTiles,
    cuda="fastrl.ops._cuda:Tiles",
    triton=WholeRows,
)


def choose_engine(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> str:
    """The engine for this call; _linear_engines.py lists them."""
    learned = (weight,) if bias is None else (weight, bias)
    if not needs_gradient(hidden, *learned):
        return "forward"
    needed = hidden.shape[0] * weight.shape[0] * hidden.element_size()
    if needed <= logits_budget(hidden.device):
        return "keep"
    return "recompute" if needs_gradient(*learned) else "frozen"


def tiles(op: Op, *tensors: torch.Tensor) -> Any:
    """The op's backend for these tensors, as _linear_tiles.py describes it."""
    picked = op.pick(*tensors)
    return picked if hasattr(picked, "whole_rows") else WholeRows


def uncast(device: torch.device) -> torch.autocast:
    """Autocast off: the products are made in the dtype of the inputs."""
    return torch.autocast(device.type, enabled=False)


def _forward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: float,
    softcap: float | None,
    scale: float,
    engine: str,
    statistics: bool,
    backend: Any = None,
) -> tuple[torch.Tensor, ...]:
    """logp, entropy, lse, what the engine keeps for the backward, statistics."""
    require_targets(targets, weight.shape[0])
    backend = backend or tiles(LINEAR, hidden, weight, targets)
    head = Head(weight, bias, temperature, softcap, scale)
    kept = hidden.new_empty(0)
    with uncast(hidden.device):
        if engine == "frozen":
            ones = torch.ones(len(hidden), dtype=_wide(hidden), device=hidden.device)
            wanted = Wanted(hidden=True, weight=False, bias=False)
            scores, (unit, _, _) = sweep_with_gradients(
                head, hidden, targets, ones, wanted, backend, statistics
            )
            assert unit is not None
            kept = unit
        else:
            if engine == "keep":
                kept = backend.memory((len(hidden), head.vocab), hidden)
            logits = kept if engine == "keep" else None
            scores = sweep(head, hidden, targets, backend, statistics, logits)
    return scores.logp, scores.entropy, scores.lse, kept, scores.statistics


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _backward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    logp: torch.Tensor,
    entropy: torch.Tensor,
    lse: torch.Tensor,
    kept: torch.Tensor,
    grad_logp: torch.Tensor | None,
    grad_entropy: torch.Tensor | None,
    temperature: float,
    softcap: float | None,
    scale: float,
    engine: str,
    wanted: tuple[bool, bool, bool],
    backend: Any = None,
) -> Gradients:
    """Gradients of hidden, weight and bias, None where not wanted."""
    if engine == "frozen" and grad_entropy is None and grad_logp is not None:
        weighted = grad_logp[:, None] * kept
        return weighted.where(grad_logp[:, None] != 0, 0.0).to(hidden.dtype), None, None
    backend = backend or tiles(LINEAR, hidden, weight, targets)
    head = Head(weight, bias, temperature, softcap, scale)
    scores = Scores(logp, entropy, lse, logp.new_empty(0, len(logp)))
    logits = kept if engine == "keep" else None
    roomy = engine == "keep" and 2 * kept.nbytes <= logits_budget(hidden.device)
    g, h = (None if grad is None else grad.contiguous() for grad in (grad_logp, grad_entropy))
    with uncast(hidden.device):
        return gradients(
            head, hidden, targets, scores, g, h, Wanted(*wanted), backend, logits, roomy
        )


torch.library.define(
    "fastrl::linear_token_logprobs",
    "(Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, float temperature, "
    "float? softcap, float scale, str engine, bool statistics) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "fastrl::linear_token_logprobs_backward",
    "(Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, Tensor logp, Tensor entropy, "
    "Tensor lse, Tensor kept, Tensor? grad_logp, Tensor? grad_entropy, float temperature, "
    "float? softcap, float scale, str engine, bool[3] wanted) -> (Tensor, Tensor, Tensor)",
)
torch.library.impl("fastrl::linear_token_logprobs", "default", _forward)


def present(gradients: Gradients, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Gradients as a registered operation must return them: an empty tensor stands for None."""
    return tuple(like.new_empty(0) if g is None else g for g in gradients)


@torch.library.impl("fastrl::linear_token_logprobs_backward", "default")
def _registered_backward(hidden: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    return present(_backward(hidden, *rest), hidden)


@torch.library.register_fake("fastrl::linear_token_logprobs")
def _fake_forward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: float,
    softcap: float | None,
    scale: float,
    engine: str,
    statistics: bool,
) -> tuple[torch.Tensor, ...]:
    n, wide = hidden.shape[0], _wide(hidden)
    shapes = {"keep": (n, weight.shape[0]), "frozen": tuple(hidden.shape)}
    return (
        hidden.new_empty(n, dtype=wide),
        hidden.new_empty(n, dtype=wide),
        hidden.new_empty(n, dtype=torch.float64),
        hidden.new_empty(shapes.get(engine, (0,))),
        hidden.new_empty((3 if statistics else 0, n), dtype=wide),
    )


@torch.library.register_fake("fastrl::linear_token_logprobs_backward")
def _fake_backward(
    hidden: torch.Tensor, weight: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    shapes = (tuple(hidden.shape), tuple(weight.shape), (weight.shape[0],))
    return tuple(
        hidden.new_empty(shape if wanted else (0,))
        for shape, wanted in zip(shapes, rest[-1], strict=True)
    )


def _keep(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, ...]) -> None:
    hidden, weight, targets, bias, *ctx.settings = inputs[:8]
    ctx.backend = inputs[9:]
    logp, entropy, lse, kept, statistics = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, targets, bias, logp, entropy, lse, kept)
    ctx.mark_non_differentiable(lse, kept, statistics)


def _gradient(
    run: Callable[..., Any],
    ctx: Any,
    grad_logp: torch.Tensor | None,
    grad_entropy: torch.Tensor | None,
    *_: Any,
) -> tuple[torch.Tensor | None, ...]:
    nothing = (None,) * len(ctx.needs_input_grad)
    needs = ctx.needs_input_grad
    wanted = (needs[0], needs[1], needs[3])
    if not any(wanted) or (grad_logp is None and grad_entropy is None):
        return nothing
    arguments = (*ctx.saved_tensors, grad_logp, grad_entropy, *ctx.settings, wanted)
    with torch.no_grad():
        found = run(*arguments, *ctx.backend)
    hidden, weight, bias = (
        once("linear_token_logprobs", gradient) if want else None
        for gradient, want in zip(found, wanted, strict=True)
    )
    return (hidden, weight, None, bias, *nothing[4:])


torch.library.register_autograd(
    "fastrl::linear_token_logprobs",
    functools.partial(_gradient, torch.ops.fastrl.linear_token_logprobs_backward),
    setup_context=_keep,
)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[torch.Tensor, ...]:
        output = _forward(*inputs)
        _keep(ctx, inputs, output)
        return output

    backward = staticmethod(functools.partial(_gradient, _backward))


def checked_head(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: float,
    softcap: float | None,
    scale: float,
    prefix: str = "",
) -> Head:
    """The head that these hidden states fit; `prefix` stands before the arguments' names.

    Raises:
        TypeError, ValueError: as `linear_token_logprobs`.
    """
    hidden_name, weight_name, bias_name = (prefix + n for n in ("hidden", "weight", "bias"))
    require_floating(hidden_name, hidden)
    require_floating(weight_name, weight)
    if hidden.dim() != 2:
        raise ValueError(f"{hidden_name} must be (N, D), not {tuple(hidden.shape)}; flatten it")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1] or weight.shape[0] == 0:
        raise ValueError(
            f"{weight_name} must be (V, {hidden.shape[1]}) to fit {hidden_name} "
            f"{tuple(hidden.shape)}, not {tuple(weight.shape)}"
        )
    others = {weight_name: weight}
    if bias is not None:
        others[bias_name] = require_floating(bias_name, bias)
        if tuple(bias.shape) != (weight.shape[0],):
            raise ValueError(f"{bias_name} must be ({weight.shape[0]},), not {tuple(bias.shape)}")
    for name, tensor in others.items():
        require_device(name, tensor, hidden_name, hidden)
        if tensor.dtype != hidden.dtype:
            raise TypeError(
                f"{name} is {tensor.dtype} and {hidden_name} {hidden.dtype}; cast one of them, for "
                f"instance {name}.to({hidden_name}.dtype)"
            )
    temperature = require_positive("temperature", temperature)
    softcap = None if softcap is None else require_positive(f"{prefix}softcap", softcap)
    return Head(weight, bias, temperature, softcap, require_positive(f"{prefix}scale", scale))


def checked_call(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: float,
    softcap: float | None,
    scale: float,
) -> tuple[Head, torch.Tensor]:
    """The head and the int64 targets.

    Raises:
        TypeError, ValueError: as `linear_token_logprobs`.
    """
    head = checked_head(hidden, weight, bias, temperature, softcap, scale)
    targets = require_ids(targets, (hidden.shape[0],), f"hidden states {tuple(hidden.shape)}")
    require_device("targets", targets, "hidden", hidden)
    return head, targets


def _require_statistics(stats: Sequence[str]) -> None:
    if isinstance(stats, str):
        raise TypeError(f"stats must be a sequence of names, not a string; pass ({stats!r},)")
    unknown = [name for name in stats if name not in STATISTICS]
    if unknown:
        raise ValueError(f"stats has {unknown[0]!r}; choose among {', '.join(STATISTICS)}")


def linear_token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    stats: Sequence[str] = (),
) -> tuple[Any, ...]:
    """Log-probability of the targets, and the entropy, from hidden states and the head.

    z = softcap * tanh(((hidden @ weight.T + bias) * scale) / softcap) / temperature, without the
    tanh if softcap is None; logp and entropy are those of softmax(z). All N x V logits live at
    once only if they fit `set_logits_budget` and a backward will want them; else they pass through
    one buffer, tile by tile. Matrix products are made in the dtype of the inputs (under autocast
    too: cast first), logits are rounded to it; all sums beyond one product are float32 or wider.
    A row whose incoming gradients are 0 adds 0 to every gradient.

    Args:
        hidden: (N, D) floating point.
        weight: (V, D), dtype of hidden.
        targets: (N,) integers in [0, V).
        bias: (V,), dtype of hidden, or None.
        temperature, softcap, scale: positive numbers.
        stats: names of further results, from the same sweep and without gradient: "top1" (1 where
            no logit exceeds the target's), "mean_logit" (mean of z over V), "log_sum_sq"
            (log sum p^2).

    Returns:
        logp (N,) and entropy (N,) in nats, float32 (float64 for float64 inputs), differentiable
        once with respect to hidden, weight and bias; then, if stats are asked for, a dict from
        name to tensor (N,).

    Raises:
        TypeError: an argument is of the wrong kind, or hidden, weight and bias differ in dtype.
        ValueError: shapes or devices do not fit, a number is not positive, a statistic is unknown,
            or (on the CPU) a target lies outside [0, V). On a GPU such a row is NaN.
    """
    head, targets = checked_call(hidden, weight, targets, bias, temperature, softcap, scale)
    _require_statistics(stats)
    numbers = (head.temperature, head.softcap, head.scale)
    if torch.compiler.is_compiling():
        engine = choose_engine(hidden, weight, bias)
        logp, entropy, *_, table = torch.ops.fastrl.linear_token_logprobs(
            hidden, weight, targets, bias, *numbers, engine, bool(stats)
        )
    elif LINEAR.pick(hidden, weight, targets) is _Reference:
        with uncast(hidden.device):
            require_targets(targets, head.vocab)
            logp, entropy, table = _Reference.forward(hidden, targets, head)
    else:
        engine = choose_engine(hidden, weight, bias)
        logp, entropy, *_, table = _Linear.apply(
            hidden, weight, targets, bias, *numbers, engine, bool(stats), None
        )
    if not stats:
        return logp, entropy
    rows = dict(zip(STATISTICS, table.unbind(0), strict=True))
    return logp, entropy, {name: rows[name] for name in stats}
