"""Proximal policy optimisation driven by `train()`, as TRL had it from 0.12 to 1.10.

What is collected: `PPOv2Trainer.experience`. What is minimised: `clipped_losses`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed

from fastrl.algos import ppo_train_parts as parts
from fastrl.algos.ppo_rollout import PPORollout
from fastrl.algos.ppo_train_config import PPOTrainConfig
from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.ppo import PPO_TRAIN
from fastrl.models.actor_critic import PolicyAndValue, Responses
from fastrl.ops.gae import gae
from fastrl.ops.shaped_rewards import shaped_rewards
from fastrl.ops.whiten import whiten
from fastrl.train import setup
from fastrl.train.agreement import agreed
from fastrl.train.statistics import check_finite


@dataclass(frozen=True)
class Experience:
    """What is collected of a batch before it is trained on; B rows, frames (B, R) fp32."""

    responses: Responses
    logp: torch.Tensor  # of the policy that sampled; 0 beyond the response, as all frames
    values: torch.Tensor  # of the states, one more than tokens where the frame has room
    advantages: torch.Tensor  # whitened
    returns: torch.Tensor

    def micro_batch(self, rows: Sequence[int]) -> dict[str, Any]:
        """Some rows, as `compute_loss` takes them."""
        index = torch.as_tensor(rows, device=self.logp.device)
        return {
            "responses": self.responses.rows(rows),
            "old_logp": self.logp[index],
            "old_values": self.values[index],
            "advantages": self.advantages[index],
            "returns": self.returns[index],
        }


def _mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (x * mask).sum() / mask.sum().clamp(min=1)


def clipped_losses(
    args: PPOTrainConfig,
    responses: Responses,
    *,
    logp: torch.Tensor,
    values: torch.Tensor,
    old_logp: torch.Tensor,
    old_values: torch.Tensor,
    advantages: torch.Tensor,
    returns: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Clipped policy and value losses of Schulman et al. 2017 (arXiv 1707.06347), eq. 7 and 9.

    ratio = exp(logp - old_logp)
    policy = mean over tokens of max(-A·ratio, -A·clamp(ratio, 1 ± cliprange))
    value = ½ mean over states of max((V - R)², (V_old + clamp(V - V_old, ±cliprange_value) - R)²)

    Each mean is over the rows given, so over those of a micro-batch. TRL averages what it logs of
    the ratio over whole frames, padding counted as a ratio of 1, and so do `policy/approxkl_avg`
    and `val/ratio` here.

    Args:
        args: `cliprange`, `cliprange_value`, `vf_coef`.
        responses: B rows.
        logp, values: (B, R), being trained; the others: as collected.

    Returns:
        policy + vf_coef · value, and what is logged of it, without gradient.
    """
    mask, states = responses.mask, responses.state_mask
    gap = (logp - old_logp) * mask
    ratio = gap.exp()
    surrogate = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - args.cliprange, 1.0 + args.cliprange)
    policy_loss = _mean(torch.maximum(surrogate, clipped), mask)

    low, high = old_values - args.cliprange_value, old_values + args.cliprange_value
    errors = (values - returns).square()
    clipped_errors = (torch.maximum(torch.minimum(values, high), low) - returns).square()
    value_loss = 0.5 * _mean(torch.maximum(errors, clipped_errors), states)

    found = {
        "loss/policy_avg": policy_loss,
        "loss/value_avg": value_loss,
        "policy/approxkl_avg": 0.5 * gap.square().mean(),
        "policy/clipfrac_avg": _mean((clipped > surrogate).float(), mask),
        "val/clipfrac_avg": _mean((clipped_errors > errors).float(), states),
        "val/ratio": ratio.mean(),
    }
    return policy_loss + args.vf_coef * value_loss, {k: v.detach() for k, v in found.items()}


@accepts_legacy(PPO_TRAIN, PPOTrainConfig)
class PPOv2Trainer(PPORollout):
    """PPO as one call: `train()` samples, scores and learns. `PPOTrainer(args=…)` makes one.

    A step of the run is a batch: `args.local_batch_size` prompts of each process are answered by
    the rollout engine, scored by the reward model, and trained on for `num_ppo_epochs` passes.
    Policy and value model learn together, with one optimizer. Nothing is padded in any pass.

    A response ends with the stop token, counted, or before a padding token, never counted: where
    EOS is the padding token it is no part of the response. The frame R is the longest response of
    the process's batch (without a stop token `response_length`), and a shorter response has one
    more state, at which its score lands: so TRL has it, and so a row's returns depend by a step on
    the rows beside it. What TRL's metrics take from padding is kept (`objective/entropy` has 1 less
    for each padding token; see also `clipped_losses`), but for `policy/entropy_avg`, which is the
    mean over response tokens. TRL stepped the optimizer at every micro-batch of the last batch of
    a pass over the dataset; here it steps by count, always.

    Args:
        args: `PPOTrainConfig`, as `PPOConfig(output_dir=…)` makes it.
        processing_class: the tokenizer, with a padding token.
        model: the policy, a causal language model, bare or with PEFT adapters.
        ref_model: what the KL is measured to; None: a frozen copy, or without adapters the policy
            that has some (`ref_adapter_name` names one that is the reference instead).
        reward_model, value_model: sequence-classification models with one label, two objects.
        train_dataset: rows with `input_ids`, the token ids of a prompt, or `prompt`, a text or
            conversation.
        data_collator: makes `input_ids`, and `attention_mask` where these are padded; None: ours.
        eval_dataset: the same, or a dict of several: answered and scored by `evaluate`, and shown
            `num_sample_generations` times a run.
        optimizers, callbacks: as in `transformers.Trainer`.
        peft_config: train an adapter of this kind on the policy.

    Raises:
        ValueError, TypeError: before anything is changed, naming the argument, row or column.
    """

    _name = "PPO"
    _tag_names = ("fastrl", "ppo")
    _paper: ClassVar[dict[str, str]] = {
        "title": "Fine-Tuning Language Models from Human Preferences",
        "id": "1909.08593",
    }

    def __init__(
        self,
        args: PPOTrainConfig,
        processing_class: PreTrainedTokenizerBase,
        model: nn.Module,
        ref_model: nn.Module | None,
        reward_model: nn.Module,
        train_dataset: Dataset,
        value_model: nn.Module,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: Any = None,
    ) -> None:
        args = PPOTrainConfig.of(args, "ppo")
        setup.check_collator(data_collator)
        models = {
            "model": model,
            "ref_model": ref_model,
            "reward_model": reward_model,
            "value_model": value_model,
        }
        parts.check_models(args, processing_class, models)
        args = parts.planned(args, train_dataset)
        sets = parts.prepared(train_dataset, eval_dataset, processing_class, model, args)
        set_seed(args.seed)
        made = parts.assembled(args, peft_config, models)
        super().__init__(
            PolicyAndValue(made.policy, made.value_model),
            args,
            data_collator or parts.padded_prompts,
            *sets,
            processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._begin(made)

    # --- what is collected -----------------------------------------------------------------------

    @torch.no_grad()
    def experience(self, model: nn.Module, prompts: list[list[int]]) -> Experience:
        """Answer prompts and say how much better each token was than expected.

        rewards = -kl_coef · KL at each token, and the score at the last state; advantages by GAE
        (arXiv 1506.02438), whitened over the batch of this process.

        Args:
            model: what the trainer calls.
            prompts: token ids of this process's share of a batch.

        Raises:
            FloatingPointError: for log-probabilities, values or scores that are not finite.
        """
        args = self.args
        drawn = self._respond(model, prompts, args.temperature)
        responses = self._framed(prompts, drawn)
        logp, _, values = model(responses=responses, temperature=args.temperature)
        ref_logp = self._reference_logp(model, responses)
        eos = self._eos_counts(drawn, responses.width)
        scores = self._scores(responses)
        if args.missing_eos_penalty is not None:
            ended = torch.tensor([count > 0 for count in eos], device=scores.device)
            scores = scores - args.missing_eos_penalty * ~ended
        mask, states = responses.mask, responses.state_mask
        with agreed(self.accelerator, "collecting experience"):
            spread = scores[:, None].expand_as(values)
            check_finite(states, policy=logp, reference=ref_logp, value=values, score=spread)
        gap = ref_logp - logp
        kl = -gap if args.kl_estimator == "k1" else gap.exp() - 1 - gap
        token_rewards, _ = shaped_rewards(scores, kl, torch.zeros_like(kl), states, args.kl_coef)
        if args.whiten_rewards:
            token_rewards = whiten(token_rewards, states, shift_mean=False)
        advantages, returns = gae(token_rewards, values, states, args.gamma, args.lam)
        advantages = whiten(advantages, mask).masked_fill(~mask, 0)
        padding = responses.width - mask.sum(1)
        non_score = -args.kl_coef * kl.sum(1).mean()
        self._note(
            {
                "objective/kl": kl.sum(1).mean(),
                "objective/entropy": (-logp.sum(1) - padding).mean(),
                "objective/non_score_reward": non_score,
                "objective/rlhf_reward": non_score + scores.mean(),
                "objective/scores": scores.mean(),
                "val/num_eos_tokens": torch.tensor(float(sum(eos)), device=scores.device),
            }
        )
        self.count_tokens(len(responses.ids) + sum(responses.ends))
        return Experience(responses, logp, values, advantages, returns)

    def _note(self, found: Mapping[str, torch.Tensor]) -> None:
        """Log the means of these over processes and steps."""
        for name, value in found.items():
            self.metrics.ratio(name, value, 1.0)

    # --- a batch ---------------------------------------------------------------------------------

    def training_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Collect prompts until a batch is whole, then answer and train on it.

        The last of the batch's optimizer steps is left to the caller, with its gradients in place.

        Returns:
            the mean loss of the batch's micro-batches, detached; 0 while prompts are collected.
        """
        self._waiting += parts.unpadded(inputs, self.processing_class.pad_token_id)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.accelerator.device)
        prompts, self._waiting = self._waiting, []
        model.train()
        experience = self.experience(model, prompts)
        plan = list(self._micro_batches(len(prompts)))
        losses = []
        for number, (rows, steps) in enumerate(plan, 1):
            self.accelerator.gradient_state._set_sync_gradients(steps)
            with nullcontext() if steps else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, experience.micro_batch(rows)))
            if steps and number < len(plan):
                self._step(model)
        ratios, self._ratios = torch.stack(self._ratios), []
        self._note({"val/ratio_var": self.accelerator.gather(ratios).var()})
        return torch.stack(losses).mean() * self.args.gradient_accumulation_steps

    def _micro_batches(self, count: int) -> Iterator[tuple[list[int], bool]]:
        """Rows of each backward pass over a batch, and whether the optimizer steps after it."""
        size, each = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        for _ in range(self.args.num_ppo_epochs):
            order = np.random.permutation(count).tolist()
            for number, start in enumerate(range(0, count, size), 1):
                yield order[start : start + size], number % each == 0

    def _step(self, model: nn.Module) -> None:
        """One optimizer step, if losses and gradients are finite."""
        norm = None
        if self.args.max_grad_norm > 0:
            norm = self.accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
        self._get_grad_norm(model, norm)
        handler = self.callback_handler
        self.control = handler.on_pre_optimizer_step(self.args, self.state, self.control)
        self.optimizer.step()
        self.control = handler.on_optimizer_step(self.args, self.state, self.control)
        model.zero_grad()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of one micro-batch, and its metrics; see `clipped_losses`.

        Args:
            model: what the trainer calls.
            inputs: `responses`, and (B, R) `old_logp`, `old_values`, `advantages`, `returns`.
            return_outputs: also return {"logp", "values"}, (B, R) each.
            num_items_in_batch: has no part in it.
        """
        collected = dict(inputs)
        responses = collected.pop("responses")
        logp, entropy, values = model(responses=responses, temperature=self.args.temperature)
        loss, found = clipped_losses(self.args, responses, logp=logp, values=values, **collected)
        self._ratios.append(found["val/ratio"])
        self._note({**found, "policy/entropy_avg": _mean(entropy.detach(), responses.mask)})
        loss = self.checked(loss)
        return (loss, {"logp": logp, "values": values}) if return_outputs else loss
