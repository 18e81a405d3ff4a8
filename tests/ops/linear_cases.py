"""What the tests of linear_token_logprobs and linear_nll share: cases, a float64 oracle, a peak."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

STATS = ("top1", "mean_logit", "log_sum_sq")
ENGINES = ["keep", "recompute", "frozen"]


@dataclass(frozen=True)
class Form:
    """How logits become z."""

    bias: bool = False
    temperature: float = 1.0
    softcap: float | None = None
    scale: float = 1.0

    @property
    def keywords(self) -> dict[str, Any]:
        numbers = {"temperature": self.temperature, "softcap": self.softcap}
        return {**numbers, "scale": self.scale}


FORMS = [
    Form(),
    Form(bias=True, temperature=0.7, scale=2.0),
    Form(softcap=5.0),
    Form(bias=True, temperature=1.3, softcap=3.0, scale=0.5),
]


@dataclass(frozen=True)
class Case:
    hidden: torch.Tensor  # (N, D)
    weight: torch.Tensor  # (V, D)
    bias: torch.Tensor | None  # (V,)
    targets: torch.Tensor  # (N,)
    g: torch.Tensor  # (N,) gradient of logp
    h: torch.Tensor  # (N,) gradient of entropy

    def leaves(self, frozen: bool = False) -> tuple[torch.Tensor | None, ...]:
        """hidden, weight, bias, requiring grad (weight and bias only if not frozen)."""
        return tuple(
            None if t is None else t.clone().requires_grad_(t is self.hidden or not frozen)
            for t in (self.hidden, self.weight, self.bias)
        )


def make(
    form: Form = FORMS[0],
    shape: tuple[int, int, int] = (13, 8, 301),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    """A case of (N, D, V)."""
    n, d, v = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    targets = torch.randint(0, v, (n,), generator=generator)
    if n:
        targets[0] = v - 1
    bias = normal(v).to(dtype) if form.bias else None
    return Case(normal(n, d).to(dtype), normal(v, d).to(dtype), bias, targets, normal(n), normal(n))


def scores_in_double(
    case: Case, form: Form, tensors: tuple[torch.Tensor | None, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """logp, entropy and z, from float64 tensors by torch's own operations."""
    hidden, weight, bias = tensors
    z = hidden @ weight.t()
    if bias is not None:
        z = z + bias
    z = z * form.scale
    if form.softcap is not None:
        z = form.softcap * torch.tanh(z / form.softcap)
    z = z / form.temperature
    logps = torch.log_softmax(z, dim=1)
    terms = logps.exp() * logps.clamp(min=-1e300)
    return logps.gather(1, case.targets[:, None])[:, 0], -terms.sum(1), z


def oracle(
    case: Case, form: Form, g: torch.Tensor | None, h: torch.Tensor | None
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Results by name and the gradients of hidden, weight (and bias), in float64."""
    tensors = tuple(
        None if t is None else t.double().detach().requires_grad_()
        for t in (case.hidden, case.weight, case.bias)
    )
    logp, entropy, z = scores_in_double(case, form, tensors)
    loss = torch.zeros((), dtype=torch.float64)
    for result, gradient in ((logp, g), (entropy, h)):
        if gradient is not None:
            loss = loss + (result * gradient.double()).sum()
    gradients = torch.autograd.grad(loss, [t for t in tensors if t is not None])
    logps = torch.log_softmax(z, dim=1)
    found = {
        "logp": logp,
        "entropy": entropy,
        "top1": (z.argmax(1) == case.targets).double(),
        "mean_logit": z.mean(1),
        "log_sum_sq": torch.logsumexp(2 * logps, dim=1),
    }
    return {name: value.detach() for name, value in found.items()}, list(gradients)


def off(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The distance relative to the expected norm."""
    error = (actual.double() - expected).norm()
    return (error / expected.norm().clamp(min=1e-30)).item()


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most memory that tensors made within `run` held at once."""
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
