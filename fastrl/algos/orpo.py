"""Odds ratio preference optimization: learn the chosen answer and shun the rejected one, at once.

ORPO: Monolithic Preference Optimization without Reference Model, arXiv 2403.07691.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.nn.functional import logsigmoid

from fastrl.algos.orpo_config import ORPOConfig
from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.reference_free import REFERENCE_FREE
from fastrl.train.reference_free import Pairs, ReferenceFreeTrainer


def log_odds(logp: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of p = exp(logp) (equation 4); fp32 tells no p from 1 above 1 - 1e-7.

    Args:
        logp: any shape, at most 0.
    """
    logp = logp.clamp(max=-torch.finfo(torch.float32).eps)
    return logp - torch.log(-torch.expm1(logp))


def orpo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, chosen_nll: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """NLL - β mean log σ(log odds of the chosen - log odds of the rejected) (equations 6 and 7).

    Args:
        chosen, rejected: (B,) log-probability per token of the answers.
        chosen_nll: scalar, mean over the tokens of the chosen rows, prompts included.
        beta: the paper's λ.

    Returns:
        the loss, a scalar, and the (B,) differences of log odds.
    """
    difference = log_odds(chosen) - log_odds(rejected)
    return chosen_nll - beta * logsigmoid(difference).mean(), difference


@accepts_legacy(REFERENCE_FREE, ORPOConfig)
class ORPOTrainer(ReferenceFreeTrainer):
    """ORPO on pairs of answers, without a reference; a pair's prompt is computed once.

    `args` is an `ORPOConfig`; the other arguments are those of `ReferenceFreeTrainer`.
    """

    _name = "ORPO"
    _tag_names = ("fastrl", "orpo")
    _paper: ClassVar[dict[str, str]] = {
        "title": "ORPO: Monolithic Preference Optimization without Reference Model",
        "id": "2403.07691",
    }
    _config = ORPOConfig
    _scores_prompt = True

    def pair_loss(self, pairs: Pairs) -> torch.Tensor:
        """`orpo_loss` of the pairs."""
        chosen, rejected = pairs.means
        beta = self.args.beta
        loss, difference = orpo_loss(chosen, rejected, pairs.chosen_nll, beta)
        self.measure((beta * chosen, beta * rejected), (chosen, rejected), pairs.chosen_nll)
        self.metrics.mean("log_odds_chosen", difference)
        self.metrics.mean("log_odds_ratio", logsigmoid(difference))
        return loss
