"""Direct preference optimization on pairs that the policy draws and reward functions judge.

Direct Language Model Alignment from Online AI Feedback, arXiv 2402.04792.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from fastrl.algos.dpo_losses import LOSSES, Pairs
from fastrl.algos.online_dpo_config import PAIR, OnlineDPOConfig
from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.online_dpo import ONLINE_DPO
from fastrl.ops.group_advantages import leave_one_out
from fastrl.train import setup
from fastrl.train.batch import Batch
from fastrl.train.collecting import weighted_total
from fastrl.train.experience import Experience
from fastrl.train.frozen import require_one_vocabulary
from fastrl.train.judging import JudgeReward, rewards_or_judge
from fastrl.train.online import OnlineTrainer
from fastrl.types import LogProbs


def by_reward(values: torch.Tensor, rewards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What belongs to the chosen and to the rejected answers: those of higher and lower reward.

    Args:
        values: (2B,), the two answers to a prompt one after the other.
        rewards: (2B,) alike; of equal ones the first is chosen.

    Returns:
        (B,) and (B,).
    """
    one, other = values.view(-1, PAIR).unbind(1)
    first = rewards[0::PAIR] >= rewards[1::PAIR]
    return torch.where(first, one, other), torch.where(first, other, one)


def preferences(
    logp: torch.Tensor, ref_logp: torch.Tensor, rewards: torch.Tensor, beta: float
) -> Pairs:
    """What DPO's losses see of B pairs; IPO's too is of whole answers here, not of their tokens.

    Args:
        logp, ref_logp: (2B,) log-probabilities of answers, a pair's one after the other.
        rewards: (2B,).
        beta: of the loss.
    """
    chosen, rejected = by_reward(logp, rewards)
    once = torch.ones_like(chosen)
    return Pairs(
        chosen,
        rejected,
        *by_reward(ref_logp, rewards),
        chosen_length=once,
        rejected_length=once,
        chosen_nll=-chosen.mean(),
        beta=beta,
        label_smoothing=0.0,
        discopop_tau=0.05,
        f_divergence="reverse_kl",
        f_alpha=1.0,
    )


def implicit_rewards(pairs: Pairs) -> dict[str, torch.Tensor]:
    """β log π/π_ref of the answers of B pairs, and how they compare; (B,) each."""
    chosen, rejected = pairs.beta * pairs.chosen, pairs.beta * pairs.rejected
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).float(),
    }


@accepts_legacy(ONLINE_DPO, OnlineDPOConfig)
class OnlineDPOTrainer(OnlineTrainer):
    """Online DPO: of two answers to each prompt the one of higher reward is preferred.

    Metrics are TRL's. These definitions differ, where TRL's depend on what stands beside a row:

    - `objective/kl`, `entropy`, `non_score_reward` and `rlhf_reward` count the tokens of answers,
      not the padding behind them;
    - `max_length` cuts a prompt by the longer of its own two answers, not by the widths of the
      batch;
    - gradients of accumulated micro-batches are averaged as their losses are, not summed;
    - a pair of which no function can judge an answer is left out; TRL takes its reward as 0;
    - a text is encoded with the special tokens its tokenizer adds, as for every other trainer here;
    - an epoch's last batch is left out if it is not whole.

    Args:
        model: a name or folder, a transformers model, or a PEFT model.
        ref_model: what the policy must stay near to; None: a copy of its start, or the model
            without its adapter.
        reward_funcs: as of `OnlineTrainer`; None: the model at `args.reward_model_path`. Both
            answers to a prompt stand one after the other in the lists that a function gets.
        args: an `OnlineDPOConfig`.
        judge: chooses between the answers, in the place of rewards; a pair that it fails on is left
            out (TRL <= 0.28 took the second answer). Metrics of scores are then not logged.
        data_collator, compute_metrics, preprocess_logits_for_metrics: not possible: rows stay as
            they are until answers are drawn, and no logits are kept.

    The other arguments are those of `OnlineTrainer`.

    Raises:
        ValueError, TypeError: before training, naming the argument, row or column.
    """

    _name = "Online DPO"
    _tag_names = ("fastrl", "online-dpo")
    _paper: ClassVar[dict[str, str]] = {
        "title": "Direct Language Model Alignment from Online AI Feedback",
        "id": "2402.04792",
    }
    _config = OnlineDPOConfig
    args: OnlineDPOConfig
    answers_a_row = PAIR
    # Metrics that a judge, who gives no scores, leaves without meaning.
    _of_scores: ClassVar[tuple[str, ...]] = (
        "objective/rlhf_reward",
        "objective/scores",
        "objective/scores_margin",
    )
    _judged_by: ClassVar[type[JudgeReward]] = JudgeReward

    def __init__(
        self,
        model: str | nn.Module,
        ref_model: nn.Module | None = None,
        reward_funcs: Any = None,
        args: OnlineDPOConfig | None = None,
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
        judge: Any = None,
    ) -> None:
        self._refuse_what_needs_logits(
            data_collator, compute_metrics, preprocess_logits_for_metrics
        )
        args = self._config.of(args, setup.run_name(model, self._name.replace(" ", "")))
        if reward_funcs is None:
            reward_funcs = args.reward_model_path
        self.judge = judge
        super().__init__(
            model,
            rewards_or_judge(reward_funcs, judge, reward_processing_classes, args, self._judged_by),
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            reward_processing_classes,
            callbacks,
            optimizers,
            peft_config=peft_config,
            ref_model=ref_model,
        )
        self._eos = torch.tensor(sorted(self._collecting.ends), device=self.args.device)

    def _start(self, reference: nn.Module | None, *judged_by: Any) -> None:
        if reference is not None and hasattr(self, "other_answers"):  # which it takes part in
            require_one_vocabulary(self.model, "ref_model", reference)
        super()._start(reference, *judged_by)

    @property
    def beta(self) -> float:
        """Of the present epoch; the last one given holds for the epochs after it."""
        return self._of_epoch(self.args.beta)

    def _of_epoch(self, given: float | list[float]) -> float:
        """A coefficient's value in the present epoch."""
        if not isinstance(given, list):
            return given
        return given[min(int(self.state.epoch or 0), len(given) - 1)]

    # Each prompt is one row until its answers are drawn, so batch sizes count prompts.

    @property
    def _repeats(self) -> tuple[int, int, int]:
        args = self.args
        return 1, args.generation_batch_size // PAIR, args.steps_per_generation

    @property
    def _eval_group(self) -> int:
        return 1

    @property
    def group_size(self) -> int:
        """2, in evaluation too."""
        return PAIR

    def experience(self, answers: Experience, scores: torch.Tensor) -> Experience:
        """Rewards of the answers and their log-probabilities under the reference.

        R = Σ_k w_k r_k, less the penalty where there is no EOS; NaN where no function has a score.
        `advantages` are by how much an answer is better than the other one.
        """
        rewards, ended = self._judged(answers, scores)
        return answers.with_tensors(
            ref_logps=self.ref_logprobs(answers).sum(1),
            rewards=rewards,
            ended=ended,
            advantages=leave_one_out(rewards, PAIR),
        )

    def _judged(
        self, answers: Experience, scores: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(2B,) rewards, and whether an answer has an EOS."""
        tensors, penalty = answers.tensors, self.args.missing_eos_penalty
        total = weighted_total(scores, self.reward_weights)
        rewards = self._collecting.own_rows(total, len(answers)).to(self.args.device)
        is_end = torch.isin(tensors["completion_ids"], self._eos)
        ended = (is_end & tensors["completion_mask"].bool()).any(1)
        if penalty is not None:
            rewards = torch.where(ended, rewards, rewards - penalty)
        return rewards, ended

    def weights(
        self, answers: Experience, accumulation: int, slices: int
    ) -> dict[str, torch.Tensor]:
        """The mean over a slice's pairs, those left out that are not judged."""
        judged = ~answers.tensors["rewards"].view(-1, PAIR).isnan().any(1)
        share = judged.float() / (judged.sum().clamp(min=1) * accumulation)
        return {"loss_weights": share.repeat_interleave(PAIR)}

    def loss(self, inputs: Batch, scores: LogProbs) -> torch.Tensor:
        """Σ_i w_i l_i of the pairs of one pass; a pair's rows stand one after the other."""
        logp, weights = scores.logp.sum(1), inputs["loss_weights"][0::PAIR]
        pairs = preferences(logp, inputs["ref_logps"], inputs["rewards"], self.beta)
        self._measure(inputs, logp.detach(), pairs)
        self.host_metrics.add("beta", pairs.beta)
        return (LOSSES[self.args.loss_type](pairs) * weights).sum()

    def _measure(self, inputs: Batch, logp: torch.Tensor, pairs: Pairs) -> None:
        """Means over answers and over pairs; those with a reward over what is judged."""
        of, rewards = inputs["slices"], inputs["rewards"]
        kl = logp - inputs["ref_logps"]
        answers = {
            "objective/kl": kl,
            "objective/entropy": -logp,
            "objective/non_score_reward": -pairs.beta * kl,
            "objective/rlhf_reward": rewards - pairs.beta * kl,
            "objective/scores": rewards,
            "val/contain_eos_token": inputs["ended"].float(),
        }
        self._record(answers, of)
        better, worse = by_reward(rewards, rewards)
        compared = {
            "objective/scores_margin": better - worse,
            "logps/chosen": pairs.chosen_logp,
            "logps/rejected": pairs.rejected_logp,
            **implicit_rewards(pairs),
        }
        self._record(compared, of[0::PAIR], ~(better + worse).isnan())

    def _record(
        self,
        values: Mapping[str, torch.Tensor],
        of: torch.Tensor,
        counted: torch.Tensor | None = None,
    ) -> None:
        """Hold means of values (N,) by slice: of those counted, or that are numbers."""
        for name, each in values.items():
            if self.judge is not None and name in self._of_scores:
                continue
            known = ~each.isnan() if counted is None else counted
            self._slice_metrics.ratio(name, each.masked_fill(~known, 0.0), known, of)

    def _refuse_what_needs_logits(self, *given: Any) -> None:
        for value, (name, mend) in zip(given, _NEEDS_LOGITS.items(), strict=True):
            if value is not None:
                raise ValueError(f"{name} has no part in {self._name}: {mend}")


_NEEDS_LOGITS = {
    "data_collator": "rows are taken as they are; prepare them in the dataset",
    "compute_metrics": "no logits are kept; let a reward function call log_metric",
    "preprocess_logits_for_metrics": "no logits are kept; leave it out",
}
