"""Direct preference optimization: make the chosen answer more likely than the rejected one.

Direct Preference Optimization: Your Language Model is Secretly a Reward Model, arXiv 2305.18290.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from fastrl.algos.dpo_config import DPOConfig
from fastrl.algos.dpo_losses import LOSSES, Pairs
from fastrl.data.collate_preference import DataCollatorForPreference
from fastrl.data.prepare_preference import prepare_preference
from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.dpo import DPO
from fastrl.models.policy import logprobs
from fastrl.train.batch import Batch, masked_tokens
from fastrl.train.offline import Loss
from fastrl.train.preference import PreferenceTrainer
from fastrl.types import LogProbs

STATS = ("top1", "mean_logit")


def answer_logp(logp: torch.Tensor, mask: torch.Tensor, ld_alpha: float | None) -> torch.Tensor:
    """Log-probability of each answer, its excess over the other's length weighed by ld_alpha.

    Args:
        logp: (2B, T - 1), chosen rows first, 0 outside the answers.
        mask: (2B, T - 1) bool, the answers' tokens.
        ld_alpha: weight in [0, 1] of tokens beyond the shorter answer's length; None: 1
            (LD-DPO, arXiv 2409.06411, equation 9).

    Returns:
        (2B,).
    """
    if ld_alpha is None:
        return logp.sum(1)
    chosen, rejected = mask.sum(1).chunk(2)
    common = torch.minimum(chosen, rejected).repeat(2)[:, None]
    beyond = mask & (mask.cumsum(1) > common)
    return (logp * torch.where(beyond, ld_alpha, 1.0)).sum(1)


def dpo_loss(pairs: Pairs, config: DPOConfig, weight: torch.Tensor | float = 1.0) -> torch.Tensor:
    """The weighted sum of the mean of each asked loss over the pairs; a scalar.

    Args:
        pairs: log-probabilities of B pairs under policy and reference.
        config: names the losses and their weights.
        weight: (B,) factor on each pair's loss.
    """
    weights = config.loss_weights or [1.0] * len(config.loss_type)
    losses = zip(config.loss_type, weights, strict=True)
    return sum(share * (weight * LOSSES[name](pairs)).mean() for name, share in losses)


@accepts_legacy(DPO, DPOConfig)
class DPOTrainer(PreferenceTrainer):
    """DPO and its relatives on pairs of answers; a pair's prompt is computed once.

    The dataset's rows have `chosen` and `rejected`, and `prompt` or not; `args` is a `DPOConfig`;
    the other arguments are those of `PreferenceTrainer`.
    """

    _name = "DPO"
    _tag_names = ("fastrl", "dpo")
    _paper: ClassVar[dict[str, str]] = {
        "title": "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        "id": "2305.18290",
    }
    _config = DPOConfig
    _prepare = staticmethod(prepare_preference)

    def _collator(
        self, tokenizer: PreTrainedTokenizerBase, args: DPOConfig
    ) -> DataCollatorForPreference:
        return DataCollatorForPreference(
            pad_token_id=tokenizer.pad_token_id,
            max_length=args.max_length,
            truncation_mode=args.truncation_mode,
            pad_to_multiple_of=args.pad_to_multiple_of,
        )

    def _set_signature_columns_if_needed(self) -> None:
        answers = ["chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps"]
        self._signature_columns = ["prompt_ids", *answers]

    def _ref_columns(self, model: nn.Module, inputs: Batch) -> dict[str, torch.Tensor]:
        scores = self._reference.logprobs(model, masked_tokens(inputs, "completion_mask"))
        chosen, rejected = answer_logp(scores.logp, scores.mask, self.args.ld_alpha).chunk(2)
        return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    def _pairs(self, scores: LogProbs, ref: Mapping[str, torch.Tensor]) -> Pairs:
        """What the losses see, from the (2B, T - 1) frames of the policy."""
        args = self.args
        length = scores.mask.sum(1).clamp(min=1)
        chosen_mask = scores.mask.chunk(2)[0]
        chosen_nll = -scores.logp.chunk(2)[0].sum() / chosen_mask.sum()
        return Pairs(
            *answer_logp(scores.logp, scores.mask, args.ld_alpha).chunk(2),
            ref["ref_chosen_logps"],
            ref["ref_rejected_logps"],
            *length.chunk(2),
            chosen_nll=chosen_nll,
            beta=args.beta,
            label_smoothing=args.label_smoothing,
            discopop_tau=args.discopop_tau,
            f_divergence=args.f_divergence_type,
            f_alpha=args.f_alpha_divergence_coef,
        )

    def loss(self, model: nn.Module, inputs: Batch, count: torch.Tensor | int | None) -> Loss:
        """The loss of one micro-batch, and its metrics.

        Args:
            model: what the trainer calls.
            inputs: `input_ids`, `attention_mask`, `completion_mask` (2B, T), chosen rows first.
            count: has no part in it; the loss is a mean over pairs.
        """
        # The reference runs first, so that its activations and the policy's never live together.
        ref = inputs if "ref_chosen_logps" in inputs else self._ref_columns(model, inputs)
        tokens = masked_tokens(inputs, "completion_mask")
        weighted = self.args.use_weighting
        stats = (*STATS, "log_sum_sq") if weighted else STATS
        with_router = self.router_aux_loss_coef > 0
        scores = logprobs(model, tokens, stats=stats, aux_loss=with_router)
        pairs = self._pairs(scores, ref)
        loss = dpo_loss(pairs, self.args, self._weight(scores) if weighted else 1.0)
        self._measure(scores, pairs)
        return Loss(loss, tokens, scores.aux_loss)

    def _weight(self, scores: LogProbs) -> torch.Tensor:
        """(B,) weights of WPO (arXiv 2406.11827, equation 2): exp of the mean over an answer of
        log p - log Σ_v p_v², of the chosen times that of the rejected; no gradient."""
        aligned = (scores.logp.detach() - scores.stats["log_sum_sq"]) * scores.mask
        chosen, rejected = (aligned.sum(1) / scores.mask.sum(1).clamp(min=1)).exp().chunk(2)
        return chosen * rejected

    def _measure(self, scores: LogProbs, pairs: Pairs) -> None:
        metrics, valid = self.metrics, scores.mask.sum()
        metrics.ratio("entropy", scores.entropy.sum(), valid)
        masks = scores.mask.chunk(2)
        for side, mask, of in zip(
            ("chosen", "rejected"), masks, scores.stats["mean_logit"].chunk(2), strict=True
        ):
            metrics.ratio(f"logits/{side}", (of * mask).sum(), mask.sum())
        top1 = scores.stats["top1"].chunk(2)[0]
        metrics.ratio("mean_token_accuracy", (top1 * masks[0]).sum(), masks[0].sum())
        chosen, rejected = self.args.beta * pairs.chosen, self.args.beta * pairs.rejected
        metrics.mean("rewards/chosen", chosen)
        metrics.mean("rewards/rejected", rejected)
        metrics.mean("rewards/accuracies", chosen > rejected)
        metrics.mean("rewards/margins", chosen - rejected)
        metrics.mean("logps/chosen", pairs.chosen_logp)
        metrics.mean("logps/rejected", pairs.rejected_logp)
