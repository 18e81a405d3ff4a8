"""Group relative policy optimization: answers are judged against the others to their prompt.

DeepSeekMath, arXiv 2402.03300; its relatives' losses are in `grpo_losses`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from fastrl.algos.grpo_config import GRPOConfig
from fastrl.algos.grpo_losses import (
    LOSSES,
    Answers,
    Settings,
    Step,
    TokenLosses,
    engine_ratio,
    high_entropy,
    per_generation_token,
    per_slice_token,
    token_losses,
    weighted_sum,
)
from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.online import GRPO
from fastrl.ops.group_advantages import group_advantages
from fastrl.train.batch import Batch
from fastrl.train.collecting import weighted_total
from fastrl.train.experience import Experience
from fastrl.train.online import OnlineTrainer
from fastrl.types import LogProbs

ENTROPY_STATE = "entropy_ctrl_state.json"


def group_relative(
    scores: torch.Tensor, weights: torch.Tensor, group: int, scale: str, aggregation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages of answers within their groups.

    Args:
        scores: (N, K) rewards of K functions, NaN where there is none.
        weights: (K,).
        group: answers to each prompt, one after the other.
        scale: whose deviation divides, see `fastrl.ops.group_advantages`.
        aggregation: "sum_then_normalize"; or "normalize_then_sum", which brings each function's
            rewards to one scale in every group before they are added (GDPO, arXiv 2601.05242).

    Returns:
        (N,) advantages, 0 where there is no score; (N,) the deviations that tell whether a group's
        rewards differ.
    """
    if aggregation == "sum_then_normalize":
        total = weighted_total(scores, weights)
        advantages, deviation = group_advantages(total, group, scale)
        alone = len(total) if scale == "batch" else group
        return advantages, deviation if alone > 1 else torch.zeros_like(deviation)
    apart = [group_advantages(column, group)[0] for column in scores.unbind(1)]
    total = (torch.stack(apart, 1) * weights).sum(1)
    total = total.masked_fill(scores.isnan().all(1), torch.nan)
    return group_advantages(total, len(total), "batch")


@accepts_legacy(GRPO, GRPOConfig)
class GRPOTrainer(OnlineTrainer):
    """GRPO and its relatives, by `args.loss_type`: dapo by default.

    The arguments are those of `OnlineTrainer`; `args` is a `GRPOConfig`.
    """

    _name = "GRPO"
    _tag_names = ("fastrl", "grpo")
    _paper: ClassVar[dict[str, str]] = {
        "title": "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language "
        "Models",
        "id": "2402.03300",
    }
    _config = GRPOConfig
    args: GRPOConfig

    def __init__(
        self,
        model: str | nn.Module,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: Any = None,
        rollout_func: Any = None,
        environment_factory: Any = None,
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
            tools=tools,
            rollout_func=rollout_func,
            environment_factory=environment_factory,
        )
        args = self.args
        self._settings = Settings.of(args)
        self._corrects = args.use_vllm and args.vllm_importance_sampling_correction
        self.entropy_coef = args.entropy_coef
        self._rewards_entropy = args.entropy_coef != 0 or args.use_adaptive_entropy
        self._last_entropy = float("inf")  # of the last optimizer step
        self._entropy_seen: list[torch.Tensor] = []  # (2,) sum and tokens, of passes of this step

    # --- what is collected -----------------------------------------------------------------------

    def experience(self, answers: Experience, scores: torch.Tensor) -> Experience:
        """Advantages, and log-probabilities of whoever the loss compares the policy with.

        The policy at collection (`old`) is scored only if weights move before the batch is used
        up, or for vLLM, whose own probabilities differ.
        """
        args = self.args
        found: dict[str, torch.Tensor] = {}
        every = args.steps_per_generation * args.num_iterations
        if args.gradient_accumulation_steps % every != 0 or self._corrects:
            found["old_per_token_logps"] = self.old_logprobs(answers)
        if args.beta != 0:
            found["ref_per_token_logps"] = self.ref_logprobs(answers)
        advantages, deviation = group_relative(
            scores,
            self.reward_weights,
            self.group_size,
            args.scale_rewards,
            args.multi_objective_aggregation,
        )
        flat = torch.isclose(deviation, torch.zeros_like(deviation))
        self.host_metrics.add("frac_reward_zero_std", float(flat.float().mean()))
        found["advantages"] = self._collecting.own_rows(advantages, len(answers)).to(args.device)
        answers = answers.with_tensors(**found)
        return self._corrected(answers) if self._corrects else answers

    def _corrected(self, answers: Experience) -> Experience:
        """With the ratio of the policy to the engine that drew, and the record of both."""
        args, held = self.args, answers.tensors
        mask = counted(held)
        old, sampled = held["old_per_token_logps"], held["sampling_per_token_logps"]
        ratio = engine_ratio(
            old,
            sampled,
            mask,
            args.vllm_importance_sampling_mode,
            args.vllm_importance_sampling_clip_min,
            args.vllm_importance_sampling_clip_max,
        )
        apart = (old - sampled).abs()[mask & ~sampled.isnan()]
        flat = ratio.flatten() if ratio.shape[1] == 1 else ratio[mask]
        zero = ratio.new_zeros(1)
        apart, flat = apart if len(apart) else zero, flat if len(flat) else zero
        name = "sampling/sampling_logp_difference"
        self.metrics.ratio(f"{name}/mean", apart.mean(), 1.0)  # of the ranks' means, as in TRL
        self.metrics.greatest(f"{name}/max", apart)
        name = "sampling/importance_sampling_ratio"
        self.metrics.least(f"{name}/min", flat)
        self.metrics.ratio(f"{name}/mean", flat.mean(), 1.0)
        self.metrics.greatest(f"{name}/max", flat)
        return answers.with_tensors(importance_sampling_ratio=ratio)

    # --- what is minimised -----------------------------------------------------------------------

    def weights(
        self, answers: Experience, accumulation: int, slices: int
    ) -> dict[str, torch.Tensor]:
        """Those of the loss type's reduction, and of the mean entropy of a slice's tokens."""
        lengths = torch.tensor(answers.tokens, device=self.args.device)
        step = Step(
            lengths,
            torch.zeros_like(lengths),
            accumulation,
            slices,
            answers.tensors["num_items_in_batch"],
            self.accelerator.num_processes,
            self.args.max_completion_length or 0,
        )
        loss = LOSSES[self.args.loss_type].weight(step)
        return {"loss_weights": loss, "entropy_weights": per_slice_token(step)}

    @property
    def regroups(self) -> bool:
        """Entropy's quantile is one of the slice, so its rows have to be computed together."""
        return super().regroups and self.args.top_entropy_quantile == 1.0

    def loss(self, inputs: Batch, scores: LogProbs) -> torch.Tensor:
        """Σ_i w_i Σ_t l_it of the rows of one pass, less the reward for entropy."""
        answers = self._answers(inputs, scores)
        found = token_losses(answers, self._settings)
        loss = weighted_sum(found.loss, inputs["loss_weights"])
        self._measure(inputs, scores, answers, found)
        return (
            loss - self._entropy_bonus(inputs, scores, answers) if self._rewards_entropy else loss
        )

    def _answers(self, inputs: Batch, scores: LogProbs) -> Answers:
        """What the loss sees."""
        mask, kept, share = counted(inputs), None, self.args.top_entropy_quantile
        if share < 1.0:
            entropy = scores.entropy.detach()
            kept = high_entropy(entropy, mask, share, self._of_all_ranks(entropy[mask]))
        return Answers(
            scores.logp,
            mask,
            inputs["advantages"],
            inputs.get("old_per_token_logps"),
            inputs.get("ref_per_token_logps"),
            inputs.get("sampling_per_token_logps"),
            inputs.get("importance_sampling_ratio"),
            kept,
        )

    def _of_all_ranks(self, x: torch.Tensor) -> torch.Tensor:
        """(N,) of this process to (M,) of all, whose numbers differ."""
        if self.accelerator.num_processes == 1:
            return x
        held = self.accelerator.pad_across_processes(x, pad_index=-1)  # entropies are positive
        held = self.accelerator.gather(held)
        return held[held >= 0]

    def _entropy_bonus(self, inputs: Batch, scores: LogProbs, answers: Answers) -> torch.Tensor:
        """The coefficient times the mean entropy of the tokens that learn.

        An adaptive coefficient acts while the entropy of the last optimizer step was no more than
        the target, and moves after the last pass of a step (arXiv 2505.22312, section 4).
        """
        args = self.args
        learnt = answers.mask if answers.kept is None else answers.mask & answers.kept
        entropy = scores.entropy.masked_fill(~learnt, 0.0)
        if answers.kept is None:
            mean = weighted_sum(entropy, inputs["entropy_weights"])
        else:
            mean = entropy.sum() / learnt.sum().clamp(min=1) / self.accumulation
        acts = not args.use_adaptive_entropy or self._last_entropy <= args.entropy_target
        coefficient = self.entropy_coef if acts else 0.0
        if self.model.training:
            if args.use_adaptive_entropy:
                self._entropy_seen.append(torch.stack([entropy.sum(), learnt.sum()]).detach())
            if self.accelerator.sync_gradients:
                self._move_entropy_coef()
        return coefficient * mean

    def _move_entropy_coef(self) -> None:
        """One step up if the entropy of this optimizer step met its target, else one down."""
        args = self.args
        if args.use_adaptive_entropy:
            total = torch.stack(self._entropy_seen).sum(0)
            total, tokens = self.accelerator.reduce(total, "sum").tolist()
            self._entropy_seen.clear()
            self._last_entropy = total / max(tokens, 1.0)
            met = self._last_entropy <= args.entropy_target
            moved = self.entropy_coef + (1 if met else -1) * args.entropy_coef_delta
            low, high = args.entropy_coef_min, args.entropy_coef_max
            self.entropy_coef = min(moved, high) if met else max(moved, low)
        self.host_metrics.add("entropy_coef", self.entropy_coef)

    # --- what is logged and kept -----------------------------------------------------------------

    def _measure(
        self, inputs: Batch, scores: LogProbs, answers: Answers, found: TokenLosses
    ) -> None:
        of, seen, mask = inputs["slices"], self._slice_metrics, answers.mask
        tokens = mask.sum(1)

        def share(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Sum and count of each answer; what is one for a whole answer counts once."""
            x = x.float()
            whole = x.shape[1] == 1
            return (x[:, 0], torch.ones_like(tokens)) if whole else ((x * mask).sum(1), tokens)

        seen.ratio("entropy", (scores.entropy * mask).sum(1), tokens, of)
        if found.kl is not None:
            seen.ratio("kl", found.kl.sum(1), tokens, of)
        for figure, name in _LOGGED.get(self.args.loss_type, _CLIPPED).items():
            seen.ratio(name, *share(found.figures[figure]), of)
        if "clipped_low" in found.figures:
            low, high = (share(found.figures[name]) for name in ("clipped_low", "clipped_high"))
            seen.least("clip_ratio/low_min", low[0] / low[1], of)
            seen.greatest("clip_ratio/high_max", high[0] / high[1], of)
        if self._rewards_entropy:
            self._measure_policy_loss(inputs, found)

    def _measure_policy_loss(self, inputs: Batch, found: TokenLosses) -> None:
        """The loss without the reward for entropy, as TRL gives it: of most losses a slice's own
        mean, of those normalised by the generation batch the part of the step's loss."""
        loss = found.loss.detach().sum(1) * inputs["loss_weights"]
        if LOSSES[self.args.loss_type].weight is not per_generation_token:
            loss = loss * self.accumulation
        of = inputs["slices"]
        once = inputs["entropy_weights"].new_ones(len(of)) / inputs["slice_rows"]
        self._slice_metrics.ratio("policy_loss", loss, once, of)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.use_adaptive_entropy and self.args.should_save:
            held = {"entropy_coef": self.entropy_coef, "last_world_entropy": self._last_entropy}
            folder = self._checkpoint_folder(trial)
            (folder / ENTROPY_STATE).write_text(json.dumps(held))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        path = None if checkpoint is None else Path(checkpoint) / ENTROPY_STATE
        if self.args.use_adaptive_entropy and path is not None and path.is_file():
            held = json.loads(path.read_text())
            self.entropy_coef, self._last_entropy = held.values()


# What a surrogate tells -> its name in the log.
_CLIPPED = {
    "clipped_low": "clip_ratio/low_mean",
    "clipped_high": "clip_ratio/high_mean",
    "clipped": "clip_ratio/region_mean",
}
_LOGGED: dict[str, dict[str, str]] = {
    "cispo": {"clipped": "cispo_clip_ratio"},
    "sapo": {},
    "vespo": {"phi": "vespo/phi_seq_mean"},
}


def counted(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(B, C) bool, the tokens of answers that learn: not padding, cut off, nor a tool's."""
    mask = tensors["completion_mask"].bool()
    return mask & tensors["tool_mask"].bool() if "tool_mask" in tensors else mask
