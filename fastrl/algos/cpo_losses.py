"""The preference losses of CPO and its relatives: one row of a table each.

Notation: c, r are the scores of the chosen and the rejected answer, log π(y|x) or a shape of it;
with "ipo" and "simpo" log-probabilities are per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Settings:
    """What a loss reads beside the scores."""

    beta: float
    label_smoothing: float
    simpo_gamma: float


Loss = Callable[[torch.Tensor, Settings], torch.Tensor]


def score(logp: torch.Tensor, alpha: float) -> torch.Tensor:
    """AlphaPO's (1 - p^-α) / α of p = exp(logp), log p at α = 0 (arXiv 2501.03884)."""
    return logp if alpha == 0 else -torch.expm1(-alpha * logp) / alpha


def _sigmoid(margin: torch.Tensor, settings: Settings) -> torch.Tensor:
    """-(1 - ε) log σ(β (c - r)) - ε log σ(-β (c - r)) (arXiv 2401.08417, equation 3)."""
    steep, doubt = settings.beta * margin, settings.label_smoothing
    return -(1 - doubt) * logsigmoid(steep) - doubt * logsigmoid(-steep)


def _hinge(margin: torch.Tensor, settings: Settings) -> torch.Tensor:
    """max(0, 1 - β (c - r)) (SLiC, arXiv 2305.10425)."""
    return torch.relu(1 - settings.beta * margin)


def _ipo(margin: torch.Tensor, settings: Settings) -> torch.Tensor:
    """(c - r - 1 / 2β)² (arXiv 2310.12036, equation 17)."""
    return (margin - 1 / (2 * settings.beta)) ** 2


def _simpo(margin: torch.Tensor, settings: Settings) -> torch.Tensor:
    """The sigmoid's loss of β (c - r) - γ (arXiv 2405.14734, equation 6)."""
    return _sigmoid(margin - settings.simpo_gamma / settings.beta, settings)


LOSSES: dict[str, Loss] = {"sigmoid": _sigmoid, "hinge": _hinge, "ipo": _ipo, "simpo": _simpo}
SMOOTHED = ("sigmoid", "simpo")
PER_TOKEN = ("ipo", "simpo")
