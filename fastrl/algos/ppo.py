"""Proximal policy optimisation driven by `step()`, as TRL had it up to 0.11.

What is collected: `PPOTrainer._collect`. What is minimised: `ppo_loss`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from fastrl.algos.kl_control import kl_controller, kl_per_token
from fastrl.algos.ppo_batch import PPOBatch, PPOExperience
from fastrl.algos.ppo_config import PPOConfig
from fastrl.algos.ppo_forms import TwoForms
from fastrl.algos.ppo_padded import Losses, PaddedPPO, Rows
from fastrl.algos.ppo_statistics import average_over_ranks, merge_minibatches, step_statistics
from fastrl.models import PreTrainedModelWrapper
from fastrl.models.policy import logprobs
from fastrl.ops.classic import clip_by_value, entropy_from_logits
from fastrl.ops.gae import gae
from fastrl.ops.shaped_rewards import shaped_rewards
from fastrl.train import setup
from fastrl.train.agreement import agreed
from fastrl.train.classic_parts import checked_parts, default_adam, with_pad_token
from fastrl.train.descent import Descent
from fastrl.train.device_cache import emptied_device_cache
from fastrl.train.moments import RunningMoments, scaled_scores
from fastrl.train.seed import set_seed
from fastrl.train.statistics import Masked, check_finite, flatten_dict, to_host
from fastrl.train.stopwatch import Stopwatch

# exp() of more overflows fp32; the batch of such a ratio is over any sensible ratio_threshold.
_MAX_LOG_RATIO = 80.0


def ppo_loss(
    config: PPOConfig,
    over: Masked,
    *,
    logprobs: torch.Tensor,
    vpreds: torch.Tensor,
    entropy: torch.Tensor,
    old_logprobs: torch.Tensor,
    values: torch.Tensor,
    advantages: torch.Tensor,
    returns: torch.Tensor,
) -> Losses:
    """Clipped policy and value losses of Schulman et al. 2017, eq. 7 and 9, over masked tokens.

    ratio = exp(logprobs − old_logprobs)
    policy = mean max(−A·ratio, −A·clamp(ratio, 1 ± cliprange))
    value = ½ mean max((V − R)², (V_old + clamp(V − V_old, ±cliprange_value) − R)²)

    All tensors (B, T - 1) fp32; `over` averages over the tokens that count. A minibatch whose mean
    ratio exceeds `config.ratio_threshold` has both losses multiplied by 0.

    Returns policy loss, vf_coef · value loss, and TRL's statistics without gradient.
    """
    low, high = values - config.cliprange_value, values + config.cliprange_value
    errors = (vpreds - returns).square()
    clipped_errors = (clip_by_value(vpreds, low, high) - returns).square()
    value_loss = 0.5 * over.mean(torch.maximum(errors, clipped_errors))

    ratio = (logprobs - old_logprobs).clamp(max=_MAX_LOG_RATIO).exp()
    surrogate = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - config.cliprange, 1.0 + config.cliprange)
    policy_loss = over.mean(torch.maximum(surrogate, clipped))

    keep = over.global_mean(ratio) <= config.ratio_threshold
    policy_loss, value_loss = policy_loss * keep, value_loss * keep
    total = policy_loss + config.vf_coef * value_loss

    stats = {
        "loss": {"policy": policy_loss, "value": value_loss, "total": total},
        "policy": {
            "entropy": over.mean(entropy),
            "approxkl": 0.5 * over.mean((logprobs - old_logprobs).square()),
            "policykl": over.mean(old_logprobs - logprobs),
            "clipfrac": over.mean((clipped > surrogate).float()),
            "advantages": advantages,
            "advantages_mean": over.mean(advantages),
            "ratio": ratio,
        },
        "returns": {"mean": over.mean(returns), "var": over.var(returns)},
        "val": {
            "vpred": over.mean(vpreds),
            "error": over.mean(errors),
            "clipfrac": over.mean((clipped_errors > errors).float()),
            "mean": over.mean(values),
            "var": over.var(values),
        },
    }
    detached = {k: v.detach() for k, v in flatten_dict(stats).items()}
    return policy_loss, config.vf_coef * value_loss, detached


class PPOTrainer(PaddedPPO, metaclass=TwoForms):
    """Classic PPO: the caller generates and scores, `step` trains. Interface of TRL 0.7.11.

    Args:
        config: a `PPOConfig`.
        model: the policy with a value head.
        ref_model: the KL reference. None: a frozen copy, or with PEFT the adapter switched off.
        tokenizer: its padding side is that of the rows; without a padding token it pads with eos.
        dataset: optional; `dataloader` then yields shuffled batches of it.
        optimizer: any torch optimizer. None: Adam at `config.learning_rate`.
        data_collator: `collate_fn` of the dataloader.
        num_shared_layers: with ref_model None, layers shared with the reference, and so frozen.
        lr_scheduler: stepped once per `step`.
        training_data_collator: pads a step's rows, which are then not packed.

    Every forward runs in eval mode, so without dropout, as in TRL. Overriding or calling
    `batched_forward_pass`, `train_minibatch` or `loss` gives TRL's contract: every position, logits
    returned. While neither they nor `prepare_model_inputs` are overridden `step` runs packed rows
    and scores response tokens only; prompt positions of `objective/logprobs` and
    `objective/ref_logprobs` are then 0.

    Raises:
        ValueError: for an argument of the wrong type; TypeError for a collator of one.
    """

    def __init__(
        self,
        config: PPOConfig | None = None,
        model: PreTrainedModelWrapper | None = None,
        ref_model: PreTrainedModelWrapper | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dataset: Any = None,
        optimizer: torch.optim.Optimizer | None = None,
        data_collator: Callable[..., Any] | None = None,
        num_shared_layers: int | None = None,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        training_data_collator: Callable[..., Any] | None = None,
    ) -> None:
        if not isinstance(config, PPOConfig):
            raise ValueError(f"config must be a PPOConfig, got {type(config).__name__}")
        setup.check_collator(data_collator)
        setup.check_collator(training_data_collator, "training_data_collator")
        model, tokenizer = checked_parts(model, ref_model, tokenizer, optimizer, lr_scheduler)
        self.tokenizer = with_pad_token(tokenizer)
        set_seed(config.seed)
        self.config, self.model = config, model
        self.accelerator = self._start_accelerator()
        self.is_distributed = self.accelerator.num_processes > 1
        self._describe_run()
        self._start_trackers()
        self.ref_model = self._make_reference(ref_model, num_shared_layers)
        self.dataset = self._checked_dataset(dataset)
        loader = None if dataset is None else self.prepare_dataloader(dataset, data_collator)
        self._own_collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        self.data_collator = training_data_collator or self._own_collator
        self.model_params = [p for p in model.parameters() if p.requires_grad]
        optimizer = optimizer or default_adam(self.model_params, config.learning_rate)
        self.kl_ctl, self.running = kl_controller(config), RunningMoments(self.accelerator)
        self._prepare(optimizer, loader, lr_scheduler)
        self._descend = Descent(
            self.accelerator, self.optimizer, self.model_params, config.max_grad_norm
        )
        self.current_step, self.compare_step, self.highest_reward = 0, 0, float("-inf")
        self._statistics_over = self.accelerator if config.global_statistics else None

    def step(
        self,
        queries: Rows,
        responses: Rows,
        scores: Rows,
        response_masks: Rows | None = None,
    ) -> dict[str, Any]:
        """One PPO optimisation on a batch of scored responses.

        Args:
            queries, responses: `config.batch_size` 1-D tensors of token ids each.
            scores: one number each, tensors of shape () or (1,).
            response_masks: per response 1 where a token counts (a tool's output does not).

        Returns:
            40 statistics: python floats, and fp32 arrays for `*_dist`, `objective/logprobs`,
            `objective/ref_logprobs`, `ppo/policy/advantages` and `ppo/policy/ratio`.

        A step that raises leaves the weights of its last good minibatch, or of its start if it had
        none, no gradient, and the scores' moments and numpy's generator as they were.

        Raises:
            ValueError: for rows that do not fit, before anything is changed.
            FloatingPointError: for a NaN or infinity, before it reaches a weight.
            RuntimeError: where gradients are disabled.
        """
        with emptied_device_cache(self.config.optimize_device_cache), self._undone_on_error():
            queries, responses, scores, response_masks = self._step_safety_checker(
                self.config.batch_size, queries, responses, scores, response_masks
            )
            total_scores = scaled_scores(scores, self.running, self.config)
            self._push_if_best(total_scores)
            watch = Stopwatch()
            batch = self._make_batch(queries, responses, response_masks)
            experience = self._collect(batch, total_scores, watch)
            train_stats = merge_minibatches(self._optimise(batch, experience))
            watch.lap("optimize_step")
            stats = self.record_step_stats(
                scores=total_scores,
                logprobs=experience.logprobs,
                ref_logprobs=experience.ref_logprobs,
                non_score_reward=experience.non_score_reward,
                train_stats=train_stats,
                kl_coef=self.kl_ctl.value,
                masks=experience.mask,
                queries=queries,
                responses=responses,
                kls=experience.kls,
            )
            if self.is_distributed:
                stats = self.gather_stats(stats)
            return self._finish(to_host(stats), watch)

    def _finish(self, stats: dict[str, Any], watch: Stopwatch) -> dict[str, Any]:
        """Move the controllers on and add what they and the clock say."""
        watch.lap("calc_stats")
        stats["ppo/learning_rate"] = self.optimizer.param_groups[0]["lr"]
        rows = self.config.batch_size * self.accelerator.num_processes
        self.kl_ctl.update(stats["objective/kl"], rows)
        stats.update(watch.total())
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        return stats

    def _reads_padding(self) -> bool:
        return not self._is_packed()

    def _is_packed(self) -> bool:
        """Whether nothing that TRL's padded contract promises has been overridden."""
        own = any(name in vars(self) for name in _PADDED_CONTRACT)
        own |= self.data_collator is not self._own_collator
        kept = all(getattr(type(self), n) is f for n, f in _PADDED_CONTRACT.items())
        return kept and not own and not self.is_encoder_decoder

    @torch.no_grad()
    def _collect(self, batch: PPOBatch, scores: torch.Tensor, watch: Stopwatch) -> PPOExperience:
        """Log-probabilities of policy and reference, rewards, advantages and returns."""
        full = self.config.kl_penalty == "full"
        policy, values, policy_logp = self._score(self.model, batch, full)
        with self._reference() as reference:
            ref, _, ref_logp = self._score(reference, batch, full)
        watch.lap("forward_pass")
        mask = batch.mask
        rewards, non_score_reward, *rest = self.compute_rewards(scores, policy, ref, mask)
        kls = rest[0] if rest else policy_logp - ref_logp  # overrides of TRL <= 0.7.8 return two
        watch.lap("compute_rewards")
        values, advantages, returns = self.compute_advantages(values, rewards, mask)
        watch.lap("compute_advantages")
        with agreed(self.accelerator, "collecting log-probabilities"):
            check_finite(mask, policy=policy_logp, reference=ref_logp, value=values)
        return PPOExperience(
            policy_logp, ref_logp, values, advantages, returns, non_score_reward, kls, mask
        )

    def _score(self, model: Any, batch: PPOBatch, full: bool) -> tuple[torch.Tensor, ...]:
        """What the KL needs (log-probabilities, over the vocabulary if full), values, log-probs."""
        model.eval()
        if self._is_packed() and not full:
            found = logprobs(model, batch.tokens(range(len(batch.queries))))
            assert found.values is not None  # checked_parts asked for a value head
            return found.logp, found.values, found.logp
        logp, logits, values, _ = self.batched_forward_pass(
            model, batch.queries, batch.responses, batch.model_inputs, return_logits=full
        )
        over_vocabulary = logp if logits is None else torch.log_softmax(logits.float(), -1)
        return over_vocabulary, values.float(), logp.float()

    def _optimise(self, batch: PPOBatch, experience: PPOExperience) -> list[dict[str, Any]]:
        """All epochs of minibatches; returns each minibatch's statistics."""
        config = self.config
        all_stats = []
        # accelerate keeps this number for the whole process: another trainer may have set its own.
        self.accelerator.gradient_accumulation_steps = config.gradient_accumulation_steps
        train = self._train_packed if self._is_packed() else self._train_padded
        for _ in range(config.ppo_epochs):
            order = np.random.permutation(config.batch_size)
            for start in range(0, config.batch_size, config.mini_batch_size):
                rows = order[start : start + config.mini_batch_size].tolist()
                with self.accelerator.accumulate(self.model):
                    all_stats.append(train(batch, experience, rows))
            if self._early_stop(all_stats[-1]["policy/policykl"]):
                break
        return all_stats

    def _train_packed(
        self, batch: PPOBatch, experience: PPOExperience, rows: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        self.model.eval()
        new = logprobs(self.model, batch.tokens(rows))
        assert new.values is not None  # as above
        old = experience.rows(rows)
        over = Masked(old.pop("mask"), self._statistics_over)
        found = {"logprobs": new.logp, "vpreds": new.values, "entropy": new.entropy}
        losses = ppo_loss(self.config, over, **found, **old)
        return self._descend_along(over, losses)

    def loss(
        self,
        old_logprobs: torch.Tensor,
        values: torch.Tensor,
        logits: torch.Tensor,
        vpreds: torch.Tensor,
        logprobs: torch.Tensor,
        mask: torch.Tensor,
        advantages: torch.Tensor,
        returns: torch.Tensor,
    ) -> Losses:
        """Policy loss, weighted value loss and statistics; see `ppo_loss`. Shapes as above."""
        return ppo_loss(
            self.config,
            Masked(mask, self._statistics_over),
            logprobs=logprobs,
            vpreds=vpreds,
            entropy=entropy_from_logits(logits.detach(), logits[..., 0].numel()),
            old_logprobs=old_logprobs,
            values=values,
            advantages=advantages,
            returns=returns,
        )

    def _descend_along(self, over: Masked, losses: Losses) -> dict[str, torch.Tensor]:
        policy_loss, value_loss, stats = losses
        self.model.train()
        ratio = self._descend(policy_loss + value_loss, over.global_mean(stats["policy/ratio"]))
        if ratio > self.config.ratio_threshold:
            warnings.warn(
                f"the mean probability ratio of a minibatch is {ratio:.2f}, over ratio_threshold="
                f"{self.config.ratio_threshold}: its loss was set to 0",
                stacklevel=2,
            )
        return stats

    def compute_rewards(
        self,
        scores: torch.Tensor,
        logprobs: torch.Tensor,
        ref_logprobs: torch.Tensor,
        masks: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rewards, their part without the score, and KL per token, each (B, T - 1).

        The score (B,) lands on a row's last token that counts. With kl_penalty "full" both
        log-probabilities are (B, T - 1, V).
        """
        kl = self._kl_penalty(logprobs, ref_logprobs)
        coef = self.kl_ctl.value
        rewards, _ = shaped_rewards(scores, kl, torch.zeros_like(kl), masks, coef)
        return rewards, -coef * kl, kl

    def _kl_penalty(self, logprob: torch.Tensor, ref_logprob: torch.Tensor) -> torch.Tensor:
        return kl_per_token(self.config.kl_penalty, logprob, ref_logprob)

    def compute_advantages(
        self, values: torch.Tensor, rewards: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Masked values, whitened advantages and returns, each (B, T - 1); Schulman et al. 2015.

        Whitened rewards are not masked again, so that entries outside the mask enter the recursion,
        as in TRL.
        """
        config = self.config
        values, rewards = values * mask, rewards * mask
        entering = mask.bool()
        over = Masked(entering, self._statistics_over)
        if config.whiten_rewards:
            rewards = over.whiten(rewards, shift_mean=False)
            entering = torch.ones_like(entering)
        advantages, returns = gae(rewards, values, entering, config.gamma, config.lam)
        return values, over.whiten(advantages), returns

    def _early_stop(self, policykl: torch.Tensor) -> bool:
        """Whether the policy has moved more than 1.5 · target_kl, averaged over processes."""
        if not self.config.early_stopping:
            return False
        if self.is_distributed:
            policykl = self.accelerator.reduce(policykl, "mean")
        if not bool(policykl > 1.5 * self.config.target_kl):
            return False
        self._descend.zero_grad()
        return True

    def record_step_stats(self, kl_coef: float, **data: Any) -> dict[str, Any]:
        """The step's statistics as tensors; see `ppo_statistics.step_statistics`."""
        return step_statistics(kl_coef, **data, accelerator=self._statistics_over)

    def gather_stats(self, stats: dict[str, Any]) -> dict[str, Any]:
        """Every tensor averaged over processes."""
        return average_over_ranks(stats, self.accelerator)


_PADDED_CONTRACT = {
    name: getattr(PPOTrainer, name)
    for name in ("prepare_model_inputs", "batched_forward_pass", "train_minibatch", "loss")
}
