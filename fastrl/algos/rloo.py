"""REINFORCE leave-one-out: an answer's baseline is the mean of the other answers to its prompt.

Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs,
arXiv 2402.14740.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from fastrl.algos.grpo_losses import clipped_surrogate
from fastrl.algos.rloo_config import RLOOConfig
from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.online import RLOO
from fastrl.ops.group_advantages import group_advantages, leave_one_out
from fastrl.train.batch import Batch
from fastrl.train.collecting import weighted_total
from fastrl.train.experience import Experience
from fastrl.train.online import OnlineTrainer
from fastrl.types import LogProbs


def rloo_loss(
    logp: torch.Tensor,
    old_logp: torch.Tensor,
    advantages: torch.Tensor,
    below: float,
    above: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped surrogate on whole answers, whose ratio is the product of their tokens' ratios.

    Args:
        logp, old_logp: (B,) log-probabilities of the answers.
        advantages: (B,).
        below, above: how far the ratio may leave 1 on either side.

    Returns:
        (B,) losses, (B,) ratios.
    """
    ratio = (logp - old_logp).exp()
    return clipped_surrogate(ratio, advantages, below, above), ratio


@accepts_legacy(RLOO, RLOOConfig)
class RLOOTrainer(OnlineTrainer):
    """RLOO: rewards less a KL penalty, each against the mean of the others to its prompt.

    The arguments are those of `OnlineTrainer`; `args` is an `RLOOConfig`.
    """

    _name = "RLOO"
    _tag_names = ("fastrl", "rloo")
    _paper: ClassVar[dict[str, str]] = {
        "title": "Back to Basics: Revisiting REINFORCE-Style Optimization for Learning from Human "
        "Feedback in LLMs",
        "id": "2402.14740",
    }
    _config = RLOOConfig
    args: RLOOConfig

    def __init__(
        self,
        model: str | nn.Module,
        reward_funcs: Any = None,
        args: RLOOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
    ) -> None:
        super().__init__(
            model,
            reward_funcs,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            reward_processing_classes,
            callbacks,
            optimizers,
            quantization_config,
            peft_config,
        )

    def experience(self, answers: Experience, scores: torch.Tensor) -> Experience:
        """Answers' log-probabilities under the policy at collection, and their advantages.

        R = Σ_k w_k r_k, clipped, - beta Σ_t log π_old/π_ref (section 2 of the paper).
        """
        args = self.args
        old = self.old_logprobs(answers)
        total = weighted_total(scores, self.reward_weights)
        if args.reward_clip_range is not None:
            low, high = args.reward_clip_range
            total = total.clamp(low, high)
        if args.beta != 0:
            kl = (old - self.ref_logprobs(answers)).sum(1)  # (B,), 0 where nothing is scored
            tokens = torch.tensor(answers.tokens, device=kl.device)
            self.metrics.ratio("kl", kl.sum(), tokens.sum(), at_least=1.0)
            total = total - args.beta * self._collecting.gathered(kl)
        advantages = leave_one_out(total, self.group_size, args.normalize_advantages)
        _, deviation = group_advantages(total, self.group_size)
        alone = self.group_size == 1
        flat = torch.isclose(deviation, torch.zeros_like(deviation)) | alone
        self.host_metrics.add("frac_reward_zero_std", float(flat.float().mean()))
        own = self._collecting.own_rows(advantages, len(answers))
        return answers.with_tensors(old_logps=old.sum(1), advantages=own.to(args.device))

    def weights(
        self, answers: Experience, accumulation: int, slices: int
    ) -> dict[str, torch.Tensor]:
        """The mean over the answers of a slice."""
        share = 1.0 / (len(answers) * accumulation)
        return {"loss_weights": torch.full((len(answers),), share, device=self.args.device)}

    def loss(self, inputs: Batch, scores: LogProbs) -> torch.Tensor:
        """Σ_i w_i l_i of the rows of one pass."""
        args = self.args
        above = args.epsilon if args.epsilon_high is None else args.epsilon_high
        losses, ratio = rloo_loss(
            scores.logp.sum(1), inputs["old_logps"], inputs["advantages"], args.epsilon, above
        )
        self._measure(inputs, scores.entropy, scores.mask, ratio.detach(), above)
        return (losses * inputs["loss_weights"]).sum()

    def _measure(
        self,
        inputs: Batch,
        entropy: torch.Tensor,
        mask: torch.Tensor,
        ratio: torch.Tensor,
        above: float,
    ) -> None:
        of, seen = inputs["slices"], self._slice_metrics
        seen.ratio("entropy", entropy.sum(1), mask.sum(1), of)
        low = (ratio < 1 - self.args.epsilon) & (inputs["advantages"] < 0)
        high = (ratio > 1 + above) & (inputs["advantages"] > 0)
        once = torch.ones_like(ratio)
        for name, clipped in (("low", low), ("high", high), ("region", low | high)):
            seen.ratio(f"clip_ratio/{name}_mean", clipped, once, of)
        seen.least("clip_ratio/low_min", low.float(), of)
        seen.greatest("clip_ratio/high_max", high.float(), of)
