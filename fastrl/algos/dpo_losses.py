"""The losses of DPO and its relatives: one row of a table each.

Notation: c, r are the log-ratios log π(y|x) - log π_ref(y|x) of the chosen and the rejected answer;
Δ = f'(c) - f'(r) the difference of their scores under an f-divergence (f' = identity for DPO), and
β its strength.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

Loss = Callable[["Pairs"], torch.Tensor]


@dataclass(frozen=True)
class Pairs:
    """What a loss sees of B pairs; every tensor is (B,) fp32 unless said otherwise."""

    chosen_logp: torch.Tensor
    rejected_logp: torch.Tensor
    ref_chosen_logp: torch.Tensor
    ref_rejected_logp: torch.Tensor
    chosen_length: torch.Tensor  # tokens of the answer, at least 1
    rejected_length: torch.Tensor
    chosen_nll: torch.Tensor  # scalar: mean over all chosen tokens of the batch
    beta: float
    label_smoothing: float
    discopop_tau: float
    f_divergence: str
    f_alpha: float

    @property
    def chosen(self) -> torch.Tensor:
        """c."""
        return self.chosen_logp - self.ref_chosen_logp

    @property
    def rejected(self) -> torch.Tensor:
        """r."""
        return self.rejected_logp - self.ref_rejected_logp

    @property
    def scores(self) -> tuple[torch.Tensor, torch.Tensor]:
        """f'(c), f'(r)."""
        score = DIVERGENCES[self.f_divergence]
        return score(self.chosen, self.f_alpha), score(self.rejected, self.f_alpha)

    @property
    def margin(self) -> torch.Tensor:
        """β Δ."""
        chosen, rejected = self.scores
        return self.beta * (chosen - rejected)

    @property
    def mean_margin(self) -> torch.Tensor:
        """Δ of the scores per token of their answers."""
        chosen, rejected = self.scores
        return chosen / self.chosen_length - rejected / self.rejected_length


def _alpha_divergence(log_ratio: torch.Tensor, alpha: float) -> torch.Tensor:
    if abs(alpha - 1.0) < 1e-6:
        return log_ratio
    # exp(80) is the largest round power that fp32 holds with room for a sum.
    power = ((alpha - 1.0) * log_ratio).clamp(max=80.0)
    return (power.exp() - 1.0) / (alpha - 1.0)


# f'(t) as a function of log t and of alpha (arXiv 2309.16240, table 1).
DIVERGENCES: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "reverse_kl": lambda x, _: x,
    "forward_kl": lambda x, _: 1 - torch.exp(-x),
    "js_divergence": lambda x, _: math.log(2) + logsigmoid(x),
    "alpha_divergence": _alpha_divergence,
}


def _smoothed(p: Pairs, z: torch.Tensor) -> torch.Tensor:
    """-log σ(z), the label flipped with probability ε."""
    return -(1 - p.label_smoothing) * logsigmoid(z) - p.label_smoothing * logsigmoid(-z)


def _exo_pair(p: Pairs) -> torch.Tensor:
    # KL(σ(±βΔ) ‖ (1 - ε, ε)), arXiv 2402.00856 equation 16
    z, smoothing = p.margin, p.label_smoothing
    chosen = torch.sigmoid(z) * (logsigmoid(z) - math.log1p(-smoothing))
    rejected = torch.sigmoid(-z) * (logsigmoid(-z) - math.log(smoothing))
    return chosen + rejected


def _nca_pair(p: Pairs) -> torch.Tensor:
    # arXiv 2402.05369, equation 11
    chosen, rejected = p.beta * p.chosen, p.beta * p.rejected
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def _robust(p: Pairs) -> torch.Tensor:
    # arXiv 2403.00409, equation 11
    flipped = p.label_smoothing
    clean = -(1 - flipped) * logsigmoid(p.margin) + flipped * logsigmoid(-p.margin)
    return clean / (1 - 2 * flipped)


def _sppo_hard(p: Pairs) -> torch.Tensor:
    # arXiv 2405.00675, equation 4.7, the winner's probability taken as 1
    half = 0.5 / p.beta
    return (p.chosen - half).square() + (p.rejected + half).square()


def _aot(p: Pairs) -> torch.Tensor:
    # Sorted margins against sorted margins of the reference (arXiv 2406.05882, paired)
    own = (p.chosen_logp - p.rejected_logp).sort().values
    ref = (p.ref_chosen_logp - p.ref_rejected_logp).sort().values
    return _smoothed(p, p.beta * (own - ref))


def _aot_unpaired(p: Pairs) -> torch.Tensor:
    # arXiv 2406.05882, unpaired
    return _smoothed(p, p.beta * (p.chosen.sort().values - p.rejected.sort().values))


def _apo_zero(p: Pairs) -> torch.Tensor:
    # arXiv 2408.06266, equation 7
    return 1 - torch.sigmoid(p.beta * p.chosen) + torch.sigmoid(p.beta * p.rejected)


def _apo_down(p: Pairs) -> torch.Tensor:
    # arXiv 2408.06266, equation 8
    apart = p.beta * (p.chosen - p.rejected)
    return torch.sigmoid(p.beta * p.chosen) + 1 - torch.sigmoid(apart)


def _discopop(p: Pairs) -> torch.Tensor:
    # arXiv 2406.08414, equation 5: logistic loss and exponential loss, blended by the margin
    z = p.margin
    blend = torch.sigmoid(z / p.discopop_tau)
    return -logsigmoid(z) * (1 - blend) + torch.exp(-z) * blend


def _bco_pair(p: Pairs) -> torch.Tensor:
    # arXiv 2404.04656, equation 12 without its running mean
    return -logsigmoid(p.beta * p.chosen) - logsigmoid(-p.beta * p.rejected)


LOSSES: dict[str, Loss] = {
    "sigmoid": lambda p: _smoothed(p, p.margin),  # arXiv 2305.18290, equation 7
    "hinge": lambda p: torch.relu(1 - p.margin),  # SLiC, arXiv 2305.10425, equation 7
    "ipo": lambda p: (p.mean_margin - 1 / (2 * p.beta)).square(),  # arXiv 2310.12036, equation 17
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "robust": _robust,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sft": lambda p: p.chosen_nll.expand_as(p.chosen_logp),
    "sigmoid_norm": lambda p: -logsigmoid(p.beta * p.mean_margin),
}

# Losses that know a share of flipped labels (TRL 1.16 leaves it out of sigmoid).
SMOOTHED = frozenset({"sigmoid", "exo_pair", "robust", "aot", "aot_unpaired"})

# Losses of the margin alone, which is what an f-divergence changes.
OF_MARGIN = frozenset(
    {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
)
