"""Nash mirror descent: answers that win against a mixture of the policy and its reference.

Nash Learning from Human Feedback, arXiv 2312.00886.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from fastrl.algos.nash_md_config import NashMDConfig
from fastrl.algos.online_dpo import OnlineDPOTrainer
from fastrl.algos.online_dpo_config import PAIR
from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.nash_md import NASH_MD
from fastrl.ops.group_advantages import leave_one_out
from fastrl.rollout.completion import Completion, Request
from fastrl.rollout.mixture import MixturePlan
from fastrl.rollout.plan import Plan
from fastrl.train.batch import Batch
from fastrl.train.experience import Experience
from fastrl.train.judging import JudgeProbability
from fastrl.types import LogProbs


def nash_md_loss(
    logp: torch.Tensor, ref_logp: torch.Tensor, probability: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """β Σ_t sg[log π_t/π_ref,t] log π_t - (P - ½) log π(y|x) of B answers, and its second part.

    Its gradient is that of Nash-MD-PG (section 7), but for the KL's estimate: a token is held to
    its own ratio, as in TRL 0.28, where the paper takes the whole answer's.

    Args:
        logp, ref_logp: (B, C), 0 where there is no token.
        probability: (B,) P that the answer is preferred to the mixture's.
        beta: τ of the paper.

    Returns:
        (B,) losses and (B,) scores (P - ½) log π(y|x).
    """
    score = (probability - 0.5) * logp.sum(1)
    pull = ((logp - ref_logp).detach() * logp).sum(1)
    return beta * pull - score, score


@accepts_legacy(NASH_MD, NashMDConfig)
class NashMDTrainer(OnlineDPOTrainer):
    """Nash-MD: what the policy answers shall be preferred to answers of a geometric mixture.

    To each prompt the policy gives one answer and the mixture π^(1-α) π_ref^α another one, with
    which the first is compared: P = σ(r - r'), or what a judge says. Only the policy's answers are
    learnt, by `nash_md_loss`. Both models keep the keys and values of what the mixture answers.

    Metrics are those of TRL 0.28: `rewards/chosen` and `rejected` are the scores of the policy's
    and of the mixture's answers, while `logps/*`, `rewards/margins` and `rewards/accuracies`
    compare the policy with the reference on the policy's answers. What `OnlineDPOTrainer` says of
    differences holds here, and: `max_length` cuts prompts, reward functions may be several and of
    any kind, and a reward model reads the text by its own tokenizer.

    Args:
        model: a name or folder, a transformers model, or a PEFT model.
        ref_model: what the policy must stay near to and is mixed with; None: a copy of its start,
            or the model without its adapter.
        reward_funcs: as of `OnlineDPOTrainer`, the policy's answer standing before the mixture's.
        judge: compares the answers, in the place of rewards: with P, if its method `judge` takes
            `return_scores`, else P is 1 or 0. Metrics of scores are then not logged.
        args: a `NashMDConfig`.

    Further arguments are `OnlineDPOTrainer`'s; what is not possible there is not here.

    Raises:
        ValueError, TypeError: before training, naming the argument, row or column.
    """

    _name = "Nash-MD"
    _tag_names = ("fastrl", "nash-md")
    _paper: ClassVar[dict[str, str]] = {
        "title": "Nash Learning from Human Feedback",
        "id": "2312.00886",
    }
    _config = NashMDConfig
    args: NashMDConfig
    _of_scores = ("rewards/chosen", "rewards/rejected")
    _judged_by = JudgeProbability
    rows_together = 1  # the mixture's answers are gone by then

    def __init__(
        self,
        model: str | nn.Module,
        ref_model: nn.Module | None = None,
        reward_funcs: Any = None,
        judge: Any = None,
        args: NashMDConfig | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: Any = None,
        reward_processing_classes: Any = None,
    ) -> None:
        super().__init__(
            model=model,
            ref_model=ref_model,
            reward_funcs=reward_funcs,
            judge=judge,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            reward_processing_classes=reward_processing_classes,
        )

    @property
    def mixture_coef(self) -> float:
        """Of the present epoch; the last one given holds for the epochs after it."""
        return self._of_epoch(self.args.mixture_coef)

    def other_answers(
        self, plan: Plan, requests: Sequence[Request]
    ) -> list[tuple[Completion, ...]]:
        """Every second answer: the mixture's.

        Args:
            plan: how the policy draws.
            requests: the prompts.
        """
        speaking = partial(self._reference.speaking, self.model_wrapped)
        with speaking() as reference:
            other = reference
        mixture = MixturePlan(
            **vars(plan), reference=other, coefficient=self.mixture_coef, aside=speaking
        )
        return mixture.answers(requests)

    def experience(self, answers: Experience, scores: torch.Tensor) -> Experience:
        """Rewards, how probably each of the policy's answers is preferred, and its reference.

        Rows of the mixture hold the same of their pair; nothing is learnt of them.
        """
        rewards, ended = self._judged(answers, scores)
        own, other = rewards.view(-1, PAIR).unbind(1)
        preferred = own if self.judge is not None else torch.sigmoid(own - other)
        ref_logps = torch.zeros_like(answers.tensors["completion_ids"], dtype=torch.float32)
        found = self.ref_logprobs(self._learnt(answers))
        ref_logps[0::PAIR, : found.shape[1]] = found
        return answers.with_tensors(
            ref_logps=ref_logps,
            rewards=rewards,
            other_rewards=rewards.view(-1, PAIR).flip(1).flatten(),
            ended=ended,
            other_ended=ended.view(-1, PAIR).flip(1).flatten(),
            probabilities=preferred.repeat_interleave(PAIR),
            advantages=leave_one_out(rewards, PAIR),
        )

    def _learnt(self, answers: Experience) -> Experience:
        """The policy's own answers."""
        return answers.take(range(0, len(answers), PAIR))

    def _weighted(
        self, answers: Experience, number: int, accumulation: int, slices: int
    ) -> Experience:
        return super()._weighted(self._learnt(answers), number, accumulation, slices)

    def weights(
        self, answers: Experience, accumulation: int, slices: int
    ) -> dict[str, torch.Tensor]:
        """The mean over a slice's answers, those left out that are not judged."""
        judged = ~answers.tensors["probabilities"].isnan()
        return {"loss_weights": judged.float() / (judged.sum().clamp(min=1) * accumulation)}

    def loss(self, inputs: Batch, scores: LogProbs) -> torch.Tensor:
        """Σ_i w_i l_i of the policy's answers in one pass."""
        probability, beta = inputs["probabilities"], self.beta
        losses, score = nash_md_loss(
            scores.logp, inputs["ref_logps"], probability.nan_to_num(0.5), beta
        )
        self._measure_answers(inputs, scores.logp.detach().sum(1), score.detach())
        self.host_metrics.add("beta", beta)
        self.host_metrics.add("mixture_coef", self.mixture_coef)
        return (losses * inputs["loss_weights"]).sum()

    def _measure_answers(self, inputs: Batch, logp: torch.Tensor, score: torch.Tensor) -> None:
        """Means over the policy's answers; those of being preferred over what is judged."""
        of, probability = inputs["slices"], inputs["probabilities"]
        ref_logp = inputs["ref_logps"].sum(1)
        margin = logp - ref_logp
        answers = {
            "loss/kl": margin,
            "logps/chosen": logp,
            "logps/rejected": ref_logp,
            "objective/entropy": -logp,
            "rewards/accuracies": (margin > 0).float(),
            "rewards/margins": margin,
            "val/model_contain_eos_token": inputs["ended"].float(),
            "val/ref_contain_eos_token": inputs["other_ended"].float(),
        }
        self._record(answers, of)
        judged = {
            "loss/score": score,
            "rewards/chosen": inputs["rewards"],
            "rewards/probabilities": probability,
            "rewards/rejected": inputs["other_rewards"],
        }
        self._record(judged, of, ~probability.isnan())
