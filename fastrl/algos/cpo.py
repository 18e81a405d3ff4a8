"""Contrastive preference optimization, SimPO and AlphaPO: preferences without a reference.

Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine
Translation, arXiv 2401.08417.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from fastrl.algos.cpo_config import CPOConfig
from fastrl.algos.cpo_losses import LOSSES, PER_TOKEN, Settings, score
from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.reference_free import REFERENCE_FREE
from fastrl.train.reference_free import Pairs, ReferenceFreeTrainer


@accepts_legacy(REFERENCE_FREE, CPOConfig)
class CPOTrainer(ReferenceFreeTrainer):
    """CPO and its relatives on pairs of answers; a pair's prompt is computed once.

    `args` is a `CPOConfig`; the other arguments are those of `ReferenceFreeTrainer`.
    """

    _name = "CPO"
    _tag_names = ("fastrl", "cpo")
    _paper: ClassVar[dict[str, str]] = {
        "title": "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance "
        "in Machine Translation",
        "id": "2401.08417",
    }
    _config = CPOConfig

    def pair_loss(self, pairs: Pairs) -> torch.Tensor:
        """The mean of the asked loss, and α times the NLL of the chosen answers."""
        args = self.args
        logps = (pairs.chosen, pairs.rejected)
        if args.loss_type in PER_TOKEN:
            logps = pairs.means
        chosen, rejected = (score(logp, args.alpha) for logp in logps)
        settings = Settings(args.beta, args.label_smoothing, args.simpo_gamma)
        loss = LOSSES[args.loss_type](chosen - rejected, settings).mean()
        nll = pairs.chosen_nll if args.cpo_alpha else torch.zeros_like(loss)
        self.measure((args.beta * chosen, args.beta * rejected), logps, nll)
        return loss + args.cpo_alpha * nll
