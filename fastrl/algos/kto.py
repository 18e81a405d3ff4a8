"""Kahneman-Tversky optimization: learn from answers marked good or bad, one by one.

KTO: Model Alignment as Prospect Theoretic Optimization, arXiv 2402.01306.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from fastrl.algos.kto_config import KTOConfig
from fastrl.data.collate_preference import DataCollatorForUnpairedPreference
from fastrl.data.prepare_unpaired import prepare_unpaired
from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.kto import KTO
from fastrl.models.policy import logprobs
from fastrl.train.batch import Batch, masked_tokens
from fastrl.train.offline import Loss
from fastrl.train.preference import PreferenceTrainer
from fastrl.types import LogProbs, Tokens

STACKED = ("input_ids", "attention_mask", "completion_mask")


def kto_loss(
    log_ratio: torch.Tensor, good: torch.Tensor, kl: torch.Tensor, config: KTOConfig
) -> torch.Tensor:
    """The mean loss of answers marked good or bad.

        kto: 1 - σ(β (x - kl)) of good answers, 1 - σ(β (kl - x)) of bad ones (equations 7 and 8)
        apo_zero_unpaired: the same with kl = 0 (arXiv 2408.06266, equation 7)

    Args:
        log_ratio: (B,) x = log π(y|x) - log π_ref(y|x).
        good: (B,) bool.
        kl: scalar without gradient, the policy's distance from the reference, at least 0.
        config: gives the loss, β and the two weights.

    Returns:
        a scalar.
    """
    origin = kl if config.loss_type == "kto" else 0.0
    side = torch.where(good, 1.0, -1.0)
    weight = torch.where(good, config.desirable_weight, config.undesirable_weight)
    return (weight * (1 - torch.sigmoid(config.beta * side * (log_ratio - origin)))).mean()


def stacked(inputs: Mapping[str, Any]) -> Batch:
    """Answers, and below them each prompt with another row's answer: (2B, T), one width."""
    if "KL_input_ids" not in inputs:
        return inputs if isinstance(inputs, Batch) else Batch(inputs)
    width = max(inputs["input_ids"].shape[1], inputs["KL_input_ids"].shape[1])
    rows = {}
    for name in STACKED:
        both = (inputs[name], inputs[f"KL_{name}"])
        rows[name] = torch.cat([pad(part, (0, width - part.shape[1])) for part in both])
    whole = Batch(rows)
    whole.spans = inputs.spans if isinstance(inputs, Batch) else None
    return whole


def part(tokens: Tokens, first: int, last: int) -> Tokens:
    """Rows first to last of tokens that have one span a row, sharing nothing."""
    chosen = slice(first, last)
    return Tokens(
        tokens.ids[chosen], tokens.starts[chosen], tokens.lengths[chosen], tokens.scored[chosen]
    )


@accepts_legacy(KTO, KTOConfig)
class KTOTrainer(PreferenceTrainer):
    """KTO on answers marked good or bad, without computing padding.

    The dataset's rows have `prompt`, `completion` and `label`, or pairs of answers; `args` is a
    `KTOConfig`; the other arguments are those of `PreferenceTrainer`.
    """

    _name = "KTO"
    _tag_names = ("fastrl", "kto")
    _paper: ClassVar[dict[str, str]] = {
        "title": "KTO: Model Alignment as Prospect Theoretic Optimization",
        "id": "2402.01306",
    }
    _config = KTOConfig
    _prepare = staticmethod(prepare_unpaired)

    def _collator(
        self, tokenizer: PreTrainedTokenizerBase, args: KTOConfig
    ) -> DataCollatorForUnpairedPreference:
        return DataCollatorForUnpairedPreference(
            pad_token_id=tokenizer.pad_token_id,
            max_length=args.max_length,
            pad_to_multiple_of=args.pad_to_multiple_of,
        )

    def _set_signature_columns_if_needed(self) -> None:
        answers = ["completion_ids", "KL_completion_ids", "label", "ref_logps", "ref_KL_logps"]
        self._signature_columns = ["prompt_ids", *answers]

    def _ref_columns(self, model: nn.Module, inputs: Batch) -> dict[str, torch.Tensor]:
        """The reference on both answers of each prompt, the prompt computed once."""
        tokens = masked_tokens(stacked(inputs), "completion_mask")
        logp = self._reference.logprobs(model, tokens).logp.sum(1)
        count = inputs["input_ids"].shape[0]
        columns = {"ref_logps": logp[:count]}
        return columns if len(logp) == count else {**columns, "ref_KL_logps": logp[count:]}

    def _kl(self, model: nn.Module, tokens: Tokens, ref_kl_logp: torch.Tensor) -> torch.Tensor:
        """Mean log-ratio of answers to other prompts, over all processes, at least 0; no gradient.

        An estimate of KL(π ‖ π_ref) that the answers which are trained have no part in (KTO,
        section 4.1).
        """
        with torch.no_grad():
            kl = (logprobs(model, tokens).logp.sum(1) - ref_kl_logp).mean()
        return self.accelerator.reduce(kl, "mean").clamp(min=0)

    def loss(self, model: nn.Module, inputs: Batch, count: torch.Tensor | int | None) -> Loss:
        """The loss of one micro-batch, and its metrics.

        Args:
            model: what the trainer calls.
            inputs: `input_ids`, `attention_mask`, `completion_mask` (B, T), `label` (B,), and for
                the KL the same three (B, T') with the prefix KL_.
            count: has no part in it; the loss is a mean over rows.
        """
        # Reference and KL run first: their activations and the policy's never live together.
        ref = inputs if "ref_logps" in inputs else self._ref_columns(model, inputs)
        tokens = masked_tokens(stacked(inputs), "completion_mask")
        rows = inputs["input_ids"].shape[0]
        kl = torch.zeros((), device=inputs["input_ids"].device)
        if self.args.loss_type == "kto":
            kl = self._kl(model, part(tokens, rows, 2 * rows), ref["ref_KL_logps"])
        own = part(tokens, 0, rows)
        with_router = self.router_aux_loss_coef > 0
        scores = logprobs(model, own, stats=("mean_logit",), aux_loss=with_router)
        logp = scores.logp.sum(1)
        good = inputs["label"].bool()
        loss = kto_loss(logp - ref["ref_logps"], good, kl, self.args)
        self.metrics.mean("kl", kl)
        self._measure(scores, good, logp, ref["ref_logps"])
        return Loss(loss, own, scores.aux_loss)

    def _measure(
        self, scores: LogProbs, good: torch.Tensor, logp: torch.Tensor, ref_logp: torch.Tensor
    ) -> None:
        """Sums over the rows of one kind, by what is 0 for the others: no index waits for them."""
        metrics, mask = self.metrics, scores.mask
        metrics.ratio("entropy", scores.entropy.sum(), mask.sum())
        reward = self.args.beta * (logp - ref_logp)
        sums = []
        for side, of in (("chosen", good), ("rejected", ~good)):
            rows, tokens = of.sum(), mask & of[:, None]
            logits = (scores.stats["mean_logit"] * tokens).sum()
            metrics.ratio(f"logits/{side}", logits, tokens.sum())
            metrics.ratio(f"rewards/{side}", (reward * of).sum(), rows)
            metrics.ratio(f"logps/{side}", (logp * of).sum(), rows)
            sums.append(((reward * of).sum(), rows))
        metrics.gap("rewards/margins", *sums)
