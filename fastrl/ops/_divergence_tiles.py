"""Divergences of a student's distributions from a teacher's, of rows of logits.

With p the student's softmax, q the teacher's and m = (1 - beta) p + beta q, the generalised
Jensen-Shannon divergence (On-Policy Distillation of Language Models, arXiv 2306.13649, section 2)

    D = beta KL(q || m) + (1 - beta) KL(p || m),   0 < beta < 1,
    d D / d z_j = (1 - beta) p_j (log p_j - log m_j - KL(p || m)),

and at the ends the divergences it tends to once divided by beta or by 1 - beta:

    beta = 0   forward,  KL(q || p):   d D / d z_j = p_j - q_j
    beta = 1   reverse,  KL(p || q):   d D / d z_j = p_j (log p_j - log q_j - D)

where z are the student's logits over the temperature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fastrl.ops._inputs import can_ask

_PIECE_ELEMENTS = 1 << 18  # logits of the CPU that are compared at once: they stay in its caches


def _expected(logs: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """sum_j exp(logs_j) x_j by row; what cannot be adds nothing, whatever x is there."""
    p = logs.exp()
    return (p * x.masked_fill(p == 0, 0.0)).sum(1)


def reference_divergence(
    z: torch.Tensor, teacher_z: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """D (N,) and the student's entropy (N,) of logits (N, V), as defined, by torch's autograd."""
    s, t = torch.log_softmax(z, dim=1), torch.log_softmax(teacher_z, dim=1)
    entropy = -_expected(s.detach(), s.detach())
    if beta == 0:
        return _expected(t, t - s), entropy
    if beta == 1:
        return _expected(s, s - t), entropy
    possible = (s > -math.inf) | (t > -math.inf)
    m = torch.logaddexp(
        (s + math.log1p(-beta)).where(possible, 0.0), (t + math.log(beta)).where(possible, 0.0)
    )
    return (1 - beta) * _expected(s, s - m) + beta * _expected(t, t - m), entropy


def _weighed(p: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """sum_j p_j x_j by row; where p is 0 and x is not finite, x becomes 0."""
    if can_ask(p):
        total = torch.linalg.vecdot(p, x)
        if total.isfinite().all():
            return total
    return (p * x.masked_fill_(p == 0, 0.0)).sum(1)


@dataclass(frozen=True)
class Distributions:
    """Student and teacher on some rows, (n, V) each."""

    s: torch.Tensor  # log p
    p: torch.Tensor  # the student's probabilities
    t: torch.Tensor  # log q
    q: torch.Tensor  # the teacher's probabilities


def jensen_shannon(
    of: Distributions, beta: float, wants_slope: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """D (n,) and its slope (n, V) along the student's z, by the formulas atop this module."""
    p, q = of.p, of.q
    if beta == 0:
        return _weighed(q, of.t - of.s), p - q if wants_slope else None
    if beta == 1:
        ratio = of.s - of.t
        value = mine = _weighed(p, ratio)
    else:
        # Where both have underflowed the mixture has too, and nothing is weighed by it.
        m = torch.lerp(p, q, beta).clamp_(min=torch.finfo(p.dtype).tiny).log_()
        ratio = of.s - m
        mine = _weighed(p, ratio)
        value = (1 - beta) * mine + beta * _weighed(q, of.t - m)
    if not wants_slope:
        return value, None
    slope = ratio.sub_(mine[:, None]).mul_(p)
    return value, slope if beta == 1 else slope.mul_(1 - beta)


def compare(
    tile: torch.Tensor,
    teacher_tile: torch.Tensor,
    temperatures: tuple[float, float],
    beta: float,
    out: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """D (n,) and the student's entropy (n,) of tiles (n, V) of logits.

    Args:
        tile, teacher_tile: of student and teacher, to be divided by their temperatures.
        out: (n, V), for d D / d tile, or None; may be the student's tile.
    """
    least = len(tile)
    if tile.device.type == "cpu":
        least = _PIECE_ELEMENTS // tile.shape[1]
    values, entropies = [], []
    for start in range(0, max(len(tile), 1), max(least, 1)):
        rows = slice(start, start + max(least, 1))
        s, t = (
            torch.log_softmax(part[rows].float() / over, dim=1)
            for part, over in zip((tile, teacher_tile), temperatures, strict=True)
        )
        of = Distributions(s, s.exp(), t, t.exp())
        value, slope = jensen_shannon(of, beta, out is not None)
        values.append(value)
        entropies.append(-_weighed(of.p, s))
        if out is not None:
            assert slope is not None
            out[rows] = slope.div_(temperatures[0])
    return torch.cat(values), torch.cat(entropies)
