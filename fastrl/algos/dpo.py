"""Direct preference optimization: make the chosen answer more likely than the rejected one.

Direct Preference Optimization: Your Language Model is Secretly a Reward Model, arXiv 2305.18290.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed

from fastrl.algos.dpo_config import DPOConfig
from fastrl.algos.dpo_losses import LOSSES, Pairs
from fastrl.data.collate_preference import DataCollatorForPreference
from fastrl.data.prepare_preference import prepare_preference
from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.dpo import DPO
from fastrl.models import adapters
from fastrl.models.policy import logprobs
from fastrl.train import setup
from fastrl.train.batch import Batch, masked_tokens
from fastrl.train.callbacks import SyncRefModelCallback
from fastrl.train.frozen import Reference, reference_model
from fastrl.train.precompute import precompute
from fastrl.train.trainer import Trainer
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
class DPOTrainer(Trainer):
    """DPO and its relatives on pairs of answers; a pair's prompt is computed once.

    Args:
        model: a name or folder, a transformers model, or a PEFT model.
        ref_model: what the policy is compared with; None: a frozen copy of `model`, or with an
            adapter the model without it.
        args: `DPOConfig` or `TrainingArguments`; None: defaults, and a folder named by the model.
        data_collator: makes batches of prepared rows; None: ours.
        train_dataset: rows with `chosen` and `rejected`, and `prompt` or not.
        eval_dataset: the same, or a dict of several.
        processing_class: the tokenizer; None: the model's own.
        compute_metrics, callbacks, optimizers: as in `transformers.Trainer`.
        quantization_config: for a model given by name.
        peft_config: train an adapter of this kind.

    Raises:
        ValueError, TypeError: before training, naming the argument, row or column.
    """

    _name = "DPO"
    _tag_names = ("fastrl", "dpo")
    _paper = {  # noqa: RUF012
        "title": "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        "id": "2305.18290",
    }

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        ref_model: PreTrainedModel | nn.Module | None = None,
        args: DPOConfig | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | Mapping[str, Any] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
    ) -> None:
        args = DPOConfig.of(args, setup.run_name(model, self._name))
        setup.check_dataset("train_dataset", train_dataset, args)
        set_seed(args.seed)
        model = setup.policy(model, args, quantization_config)
        tokenizer = setup.tokenizer(processing_class, model, args)
        setup.set_pad_token(tokenizer, model, args)
        model = setup.with_adapter(model, peft_config, args)
        once = args.precompute_ref_log_probs
        reference = reference_model(model, ref_model, peft_config is not None, asked_once=once)
        self.router_aux_loss_coef = setup.router_aux_loss_coef(model, args.router_aux_loss_coef)
        if args.disable_dropout:
            setup.disable_dropout(model, reference)
        super().__init__(
            model,
            args,
            data_collator or self._collator(tokenizer, args),
            prepare_preference(train_dataset, tokenizer, args, "train_dataset"),
            setup.each(eval_dataset, lambda d: prepare_preference(d, tokenizer, args, "eval")),
            tokenizer,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._start_reference(reference)

    def _collator(
        self, tokenizer: PreTrainedTokenizerBase, args: DPOConfig
    ) -> DataCollatorForPreference:
        return DataCollatorForPreference(
            pad_token_id=tokenizer.pad_token_id,
            max_length=args.max_length,
            truncation_mode=args.truncation_mode,
            pad_to_multiple_of=args.pad_to_multiple_of,
        )

    def _start_reference(self, reference: nn.Module | None) -> None:
        """Place the reference beside the policy; let it follow, or run it over the dataset."""
        args = self.args
        if args.sync_ref_model:
            if reference is None:
                raise ValueError(
                    "sync_ref_model needs a reference apart from the policy; an adapter's is the "
                    "model itself without it"
                )
            self.add_callback(SyncRefModelCallback(reference, self.accelerator))
        self._reference = Reference(self.accelerator, reference)
        if args.precompute_ref_log_probs:
            train = args.precompute_ref_batch_size or args.per_device_train_batch_size
            held_out = args.precompute_ref_batch_size or args.per_device_eval_batch_size
            self.train_dataset = self._precomputed(self.train_dataset, train)
            self.eval_dataset = setup.each(
                self.eval_dataset, lambda dataset: self._precomputed(dataset, held_out)
            )

    @property
    def ref_model(self) -> nn.Module | None:
        """The reference, where it is a model apart."""
        return self._reference.model

    def _precomputed(self, dataset: Any, batch_size: int) -> Any:
        """The rows with `ref_chosen_logps` and `ref_rejected_logps`."""

        def score(batch: Batch) -> dict[str, torch.Tensor]:
            chosen, rejected = self._ref_logp(self.model, batch).chunk(2)
            return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

        return precompute(self, dataset, batch_size, self._reference.key(self.model), score)

    def prepare_eval_dataset(self, dataset: Any) -> Any:
        """As the evaluation dataset given at construction."""
        rows = prepare_preference(dataset, self.processing_class, self.args, "eval_dataset")
        if not self.args.precompute_ref_log_probs or "ref_chosen_logps" in rows.column_names:
            return rows
        gone = self.ref_model is None and not adapters.is_peft(self.model)
        if gone and self.state.global_step > 0:
            raise ValueError(
                "eval_dataset: with precompute_ref_log_probs and no ref_model the reference was "
                "the policy before training, which is gone; give this dataset at construction, "
                "or a ref_model"
            )
        size = self.args.precompute_ref_batch_size or self.args.per_device_eval_batch_size
        return self._precomputed(rows, size)

    def _set_signature_columns_if_needed(self) -> None:
        answers = ["chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps"]
        self._signature_columns = ["prompt_ids", *answers]

    def _ref_logp(self, model: nn.Module, inputs: Batch) -> torch.Tensor:
        """(2B,) log-probabilities of the answers under the reference."""
        if "ref_chosen_logps" in inputs:
            return torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        scores = self._reference.logprobs(model, masked_tokens(inputs, "completion_mask"))
        return answer_logp(scores.logp, scores.mask, self.args.ld_alpha)

    def _pairs(self, scores: LogProbs, ref_logp: torch.Tensor) -> Pairs:
        """What the losses see, from the (2B, T - 1) frames of the policy."""
        args = self.args
        length = scores.mask.sum(1).clamp(min=1)
        chosen_mask = scores.mask.chunk(2)[0]
        chosen_nll = -scores.logp.chunk(2)[0].sum() / chosen_mask.sum()
        return Pairs(
            *answer_logp(scores.logp, scores.mask, args.ld_alpha).chunk(2),
            *ref_logp.chunk(2),
            *length.chunk(2),
            chosen_nll=chosen_nll,
            beta=args.beta,
            label_smoothing=args.label_smoothing,
            discopop_tau=args.discopop_tau,
            f_divergence=args.f_divergence_type,
            f_alpha=args.f_alpha_divergence_coef,
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of one micro-batch, and its metrics.

        Args:
            model: what the trainer calls.
            inputs: `input_ids`, `attention_mask`, `completion_mask` (2B, T), chosen rows first.
            return_outputs: also return {"logits": (2B, T, V), "labels"}, by a second forward.
            num_items_in_batch: has no part in it; the loss is a mean over pairs.

        Returns:
            the loss, a scalar; or (loss, outputs).
        """
        # The reference runs first, so that its activations and the policy's never live together.
        ref_logp = self._ref_logp(model, inputs)
        tokens = masked_tokens(inputs, "completion_mask")
        weighted = self.args.use_weighting
        stats = (*STATS, "log_sum_sq") if weighted else STATS
        coefficient = self.router_aux_loss_coef
        scores = logprobs(model, tokens, stats=stats, aux_loss=coefficient > 0)
        pairs = self._pairs(scores, ref_logp)
        loss = dpo_loss(pairs, self.args, self._weight(scores) if weighted else 1.0)
        if scores.aux_loss is not None:
            loss = loss + coefficient * scores.aux_loss
            self.metrics.mean("aux_loss", scores.aux_loss)
        self._measure(scores, pairs)
        self.count_tokens(sum(tokens.lengths))
        loss = self.checked(loss)
        return (loss, self._logits(model, inputs)) if return_outputs else loss

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

    def _logits(self, model: nn.Module, inputs: Batch) -> dict[str, torch.Tensor]:
        names = ("input_ids", "attention_mask")
        with torch.no_grad():
            logits = model(**{name: inputs[name] for name in names}, use_cache=False).logits
        return {"logits": logits, "labels": inputs["completion_mask"]}
