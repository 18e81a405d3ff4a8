"""Process reward models: is each step of a solution right?

Solving math word problems with process- and outcome-based feedback, arXiv 2211.14275.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)

from fastrl.algos.prm_config import PRMConfig
from fastrl.data.collate import DataCollatorForLanguageModeling
from fastrl.data.prepare_stepwise import prepare_stepwise
from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.prm import PRM
from fastrl.models.token_classes import check_token_classes, prepare_token_classes, token_logits
from fastrl.train import setup
from fastrl.train.accuracy import compute_accuracy
from fastrl.train.answers import AnswerTrainer
from fastrl.train.batch import Batch, labelled_tokens
from fastrl.train.offline import Loss


def prm_loss(
    logits: torch.Tensor, labels: torch.Tensor, count: torch.Tensor | int, smoothing: float = 0.0
) -> torch.Tensor:
    """-log p(label) summed over the ends of steps, by `count` (section 2.4).

    Args:
        logits: (K, L) fp32.
        labels: (K,) int64.
        count: labels of the whole optimizer step.
        smoothing: share of each label that is spread over all classes.

    Returns:
        a scalar.
    """
    return cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing) / count


@accepts_legacy(PRM, PRMConfig)
class PRMTrainer(AnswerTrainer):
    """A classifier of tokens learns at the end of each step whether it is right.

    Args:
        model: a name or folder, a token-classification model, or a PEFT model.
        args: `PRMConfig` or `TrainingArguments`; None: defaults, and a folder named by the model.
        data_collator: makes batches of prepared rows; None: ours.
        train_dataset: rows of `prompt`, `completions` and `labels`, or `input_ids` and `labels`.
        eval_dataset: the same, or a dict of several.
        processing_class: the tokenizer; None: the model's own.
        compute_metrics: gets predictions (N, T, L), 0 where no label is, and labels (N, T); None:
            the accuracy.
        callbacks, optimizers, preprocess_logits_for_metrics: as in `transformers.Trainer`.
        peft_config: train an adapter of this kind.
        quantization_config: for a model given by name.

    Raises:
        ValueError, TypeError: before training, naming the argument, row or column.
    """

    _name = "PRM"
    _tag_names = ("fastrl", "prm")
    _task = "token-classification"
    _paper: ClassVar[dict[str, str]] = {
        "title": "Solving math word problems with process- and outcome-based feedback",
        "id": "2211.14275",
    }
    _config = PRMConfig
    _architecture = AutoModelForTokenClassification
    counts_labels = True

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        args: PRMConfig | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | Mapping[str, Any] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: Callable[..., torch.Tensor] | None = None,
        peft_config: Any = None,
        quantization_config: Any = None,
    ) -> None:
        if isinstance(model, nn.Module):
            check_token_classes(model)
        args = self._settled(model, args, train_dataset, data_collator)
        model, tokenizer = self._policy(
            model, args, processing_class, quantization_config, peft_config
        )
        self._num_labels = model.config.num_labels
        if args.disable_dropout:
            setup.disable_dropout(model)
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            tokenizer,
            compute_metrics=compute_metrics or compute_accuracy,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )

    def _make_ready(self, model: nn.Module) -> None:
        prepare_token_classes(model)

    def _prepared(
        self, dataset: Any, tokenizer: PreTrainedTokenizerBase, args: Any, name: str
    ) -> Any:
        return prepare_stepwise(dataset, tokenizer, args, name, self._num_labels)

    def _collator(
        self, tokenizer: PreTrainedTokenizerBase, args: PRMConfig
    ) -> DataCollatorForLanguageModeling:
        return DataCollatorForLanguageModeling(
            pad_token_id=tokenizer.pad_token_id, pad_to_multiple_of=args.pad_to_multiple_of
        )

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "labels"]

    def loss(self, model: nn.Module, inputs: Batch, count: torch.Tensor | int | None) -> Loss:
        """The loss of one micro-batch, and its metrics.

        Args:
            model: what the trainer calls.
            inputs: `input_ids`, `attention_mask`, `labels` (B, T).
            count: labels of the whole optimizer step over all processes; None: this batch's own.
        """
        tokens = labelled_tokens(inputs)
        logits, at = token_logits(model, tokens)
        labels = inputs["labels"].reshape(-1)[at]
        count = max(len(at), 1) if count is None else count
        loss = prm_loss(logits, labels, count, self.args.label_smoothing_factor)
        if self.model.training:  # of evaluation it is what compute_metrics says
            self.metrics.mean("accuracy", logits.argmax(1) == labels)
        return Loss(loss, tokens, outputs=partial(_whole, logits.detach(), at, inputs["labels"]))


def _whole(logits: torch.Tensor, at: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """{"logits": (B, T, L), 0 where no label is, "labels": (B, T)} of (K, L) logits."""
    whole = logits.new_zeros(labels.numel(), logits.shape[1]).index_copy(0, at, logits)
    return {"logits": whole.view(*labels.shape, -1), "labels": labels}
