"""Reward modelling: a number for each answer, higher for the one that was preferred."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from torch.nn.functional import logsigmoid
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)

from fastrl.algos.reward_config import RewardConfig
from fastrl.data.collate_classic import not_classic
from fastrl.data.collate_reward import DataCollatorForPreference, pooled_column
from fastrl.data.prepare_preference import prepare_reward
from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.reward import REWARD
from fastrl.models.pooled import prepare_rewards, rewards
from fastrl.train import setup
from fastrl.train.batch import Batch, masked_tokens
from fastrl.train.offline import Loss, OfflineTrainer


def reward_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    margin: torch.Tensor | float = 0.0,
    center: float | None = None,
) -> torch.Tensor:
    """-log σ(r_c - r_r - margin), mean over the pairs (Bradley-Terry; arXiv 2203.02155 equation 1).

    Args:
        chosen, rejected: (B,) rewards.
        margin: (B,) by how much they should differ (Llama 2, arXiv 2307.09288 equation 2).
        center: weight of mean((r_c + r_r)²), which holds their sum at 0 (arXiv 2312.09244).

    Returns:
        a scalar.
    """
    loss = -logsigmoid(chosen - rejected - margin).mean()
    return loss if center is None else loss + center * (chosen + rejected).square().mean()


@accepts_legacy(REWARD, RewardConfig)
class RewardTrainer(OfflineTrainer):
    """A sequence classifier with one label learns which of two answers was preferred.

    Args:
        model: a name or folder, a sequence-classification model with num_labels=1, or a PEFT model.
        args: `RewardConfig` or `TrainingArguments`; None: defaults, and a folder named by the
            model.
        data_collator: makes batches of prepared rows; None: ours.
        train_dataset: rows with `chosen` and `rejected`, with `prompt` or not, with `margin` or
            not, or their token ids.
        eval_dataset: the same, or a dict of several.
        processing_class: the tokenizer; None: the model's own.
        compute_metrics: gets predictions (N, 2), softmax over (chosen, rejected), and labels 0.
        callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics: as in
            `transformers.Trainer`.
        quantization_config: for a model given by name.
        peft_config: train an adapter of this kind.

    Raises:
        ValueError, TypeError: before training, naming the argument, row or column.
    """

    _name = "Reward"
    _tag_names = ("fastrl", "reward-trainer")
    _task = "text-classification"

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        args: RewardConfig | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | Mapping[str, Any] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[..., torch.Tensor] | None = None,
        quantization_config: Any = None,
        peft_config: Any = None,
    ) -> None:
        args = RewardConfig.of(args, setup.run_name(model, self._name))
        setup.check_dataset("train_dataset", train_dataset, args)
        setup.check_collator(data_collator)
        set_seed(args.seed)
        model, tokenizer = self._assemble(
            model, args, processing_class, quantization_config, peft_config
        )
        super().__init__(
            model,
            args,
            not_classic(data_collator) or self._collator(tokenizer, args),
            prepare_reward(train_dataset, tokenizer, args, "train"),
            setup.each(eval_dataset, lambda d: prepare_reward(d, tokenizer, args, "eval")),
            tokenizer,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )

    def _assemble(
        self,
        model: Any,
        args: RewardConfig,
        processing_class: PreTrainedTokenizerBase | None,
        quantization_config: Any,
        peft_config: Any,
    ) -> tuple[nn.Module, PreTrainedTokenizerBase]:
        """Model with its adapter, and tokenizer; both agree on padding, end and template."""
        architecture = AutoModelForSequenceClassification
        if isinstance(model, str):
            args.model_init_kwargs = {**(args.model_init_kwargs or {}), "num_labels": 1}
        model = setup.policy(model, args, quantization_config, architecture)
        tokenizer = setup.tokenizer(processing_class, model, args)
        setup.set_eos_token(tokenizer, model, args.eos_token)
        model, tokenizer, added = setup.chat_template(tokenizer, model, args.chat_template_path)
        model = setup.with_adapter(model, setup.with_new_tokens(peft_config, added), args)
        setup.set_pad_token(tokenizer, model, args)
        if args.disable_dropout:
            setup.disable_dropout(model)
        return model, tokenizer

    def _make_ready(self, model: nn.Module) -> None:
        prepare_rewards(model)

    def _collator(
        self, tokenizer: PreTrainedTokenizerBase, args: RewardConfig
    ) -> DataCollatorForPreference:
        return DataCollatorForPreference(tokenizer.pad_token_id, args.pad_to_multiple_of)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["chosen_ids", "rejected_ids", "margin"]

    def prepare_eval_dataset(self, dataset: Any) -> Any:
        """As the evaluation dataset given at construction."""
        return prepare_reward(dataset, self.processing_class, self.args, "eval")

    def _pooled(self, inputs: Batch) -> list[int]:
        """The token each row is judged at, found on the host where the collator did not say."""
        if inputs.pooled is not None:
            return inputs.pooled
        pad = self.processing_class.pad_token_id
        return [pooled_column(row, pad) for row in inputs["input_ids"].cpu().numpy()]

    def loss(self, model: nn.Module, inputs: Batch, count: torch.Tensor | int | None) -> Loss:
        """The loss of one micro-batch, and its metrics.

        Args:
            model: what the trainer calls.
            inputs: `input_ids`, `attention_mask` (2B, T), chosen rows first; `margin` (B,) or none.
            count: has no part in it; the loss is a mean over pairs.
        """
        tokens = masked_tokens(inputs, "attention_mask")
        found = rewards(model, tokens, self._pooled(inputs))
        chosen, rejected = found.chunk(2)
        margin = inputs.get("margin", 0.0)
        loss = reward_loss(chosen, rejected, margin, self.args.center_rewards_coefficient)
        self.metrics.least("min_reward", found)
        self.metrics.mean("mean_reward", found)
        self.metrics.greatest("max_reward", found)
        self.metrics.mean("accuracy", chosen > rejected)
        self.metrics.mean("margin", chosen - rejected)
        return Loss(loss, tokens, outputs=partial(_preferences, found.detach()))


def _preferences(found: torch.Tensor) -> dict[str, torch.Tensor]:
    """{"logits": (B, 2) softmax of each pair's rewards, "labels": (B,) zeros} of (2B,) rewards."""
    pairs = torch.stack(found.chunk(2), dim=1).softmax(1)
    return {"logits": pairs, "labels": torch.zeros_like(pairs[:, 0])}
