"""Exploratory preference optimization: online DPO on answers of the policy and of its reference.

Exploratory Preference Optimization, arXiv 2405.21046.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from fastrl.algos.dpo_losses import LOSSES, Pairs
from fastrl.algos.online_dpo import OnlineDPOTrainer, implicit_rewards, preferences
from fastrl.algos.online_dpo_config import PAIR
from fastrl.algos.xpo_config import XPOConfig
from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.nash_md import NASH_MD
from fastrl.rollout.completion import Completion, Request
from fastrl.rollout.plan import Plan
from fastrl.train.batch import Batch
from fastrl.types import LogProbs


@accepts_legacy(NASH_MD, XPOConfig)
class XPOTrainer(OnlineDPOTrainer):
    """XPO: of the policy's and the reference's answer to a prompt the better one is preferred.

        l = -log σ(β Δ) + α log π(y_ref|x),  Δ = log π/π_ref (chosen) - log π/π_ref (rejected)

    (algorithm 1), or with IPO's loss in the place of DPO's. What lowers the likelihood of the
    reference's answers lets the policy try others.

    Metrics are those of TRL 0.28, where `logps/*` are of the policy and of the reference together;
    `objective/kl` and `entropy` are of both answers. What `OnlineDPOTrainer` says of differences
    holds here, and: `max_length` cuts prompts, reward functions may be several and of any kind, and
    a reward model reads the text by its own tokenizer.

    Args:
        model: a name or folder, a transformers model, or a PEFT model.
        ref_model: whose answers are the others; None: a copy of the policy's start, or the model
            without its adapter.
        reward_funcs: as of `OnlineDPOTrainer`, the policy's answer standing before the reference's.
        judge: chooses between the answers, in the place of rewards. Metrics of scores are then not
            logged.
        args: an `XPOConfig`.

    The other arguments are those of `OnlineDPOTrainer`, or as impossible as there.

    Raises:
        ValueError, TypeError: before training, naming the argument, row or column.
    """

    _name = "XPO"
    _tag_names = ("fastrl", "xpo")
    _paper: ClassVar[dict[str, str]] = {
        "title": "Exploratory Preference Optimization: Harnessing Implicit Q*-Approximation for "
        "Sample-Efficient RLHF",
        "id": "2405.21046",
    }
    _config = XPOConfig
    args: XPOConfig
    _of_scores = ("objective/model_scores", "objective/ref_scores", "objective/scores_margin")

    def __init__(
        self,
        model: str | nn.Module,
        ref_model: nn.Module | None = None,
        reward_funcs: Any = None,
        judge: Any = None,
        args: XPOConfig | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: Any = None,
        peft_config: Any = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: Any = None,
    ) -> None:
        super().__init__(
            model,
            ref_model,
            reward_funcs,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            reward_processing_classes,
            peft_config,
            compute_metrics,
            callbacks,
            optimizers,
            preprocess_logits_for_metrics,
            judge,
        )

    @property
    def alpha(self) -> float:
        """Of the present epoch; the last one given holds for the epochs after it."""
        return self._of_epoch(self.args.alpha)

    def other_answers(
        self, plan: Plan, requests: Sequence[Request]
    ) -> list[tuple[Completion, ...]]:
        """Every second answer: the reference's.

        Args:
            plan: how the policy draws.
            requests: the prompts.
        """
        with self._reference.speaking(self.model_wrapped) as reference:
            return replace(plan, model=reference).answers(requests)

    def loss(self, inputs: Batch, scores: LogProbs) -> torch.Tensor:
        """Σ_i w_i l_i of the pairs of one pass; a pair's rows stand one after the other."""
        logp, weights = scores.logp.sum(1), inputs["loss_weights"][0::PAIR]
        pairs = preferences(logp, inputs["ref_logps"], inputs["rewards"], self.beta)
        preferring = LOSSES[self.args.loss_type](pairs)
        exploring = self.alpha * logp[1::PAIR]
        losses = {"loss/dpo": preferring.detach(), "loss/xpo": exploring.detach()}
        self._measure_pairs(inputs, logp.detach(), pairs, losses)
        self.host_metrics.add("alpha", self.alpha)
        self.host_metrics.add("beta", pairs.beta)
        return ((preferring + exploring) * weights).sum()

    def _measure_pairs(
        self, inputs: Batch, logp: torch.Tensor, pairs: Pairs, losses: dict[str, torch.Tensor]
    ) -> None:
        of = inputs["slices"]
        answers = {"objective/kl": logp - inputs["ref_logps"], "objective/entropy": -logp}
        self._record(answers, of)
        own, other = inputs["rewards"][0::PAIR], inputs["rewards"][1::PAIR]
        ended = inputs["ended"].float()
        drawn = {
            "objective/model_scores": own,
            "objective/ref_scores": other,
            "objective/scores_margin": own - other,
            "val/model_contain_eos_token": ended[0::PAIR],
            "val/ref_contain_eos_token": ended[1::PAIR],
        }
        self._record(drawn, of[0::PAIR])
        compared = {
            **losses,
            "logps/chosen": pairs.chosen_logp + pairs.ref_chosen_logp,
            "logps/rejected": pairs.rejected_logp + pairs.ref_rejected_logp,
            **implicit_rewards(pairs),
        }
        self._record(compared, of[0::PAIR], ~(own + other).isnan())
