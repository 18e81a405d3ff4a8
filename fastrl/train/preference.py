"""What trainers that compare with a frozen policy share: DPO and KTO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from fastrl.data.prepare_legacy import begin_with_bos
from fastrl.models import adapters
from fastrl.train import setup
from fastrl.train.answers import AnswerTrainer
from fastrl.train.batch import Batch
from fastrl.train.callbacks import SyncRefModelCallback
from fastrl.train.frozen import Reference, reference_model
from fastrl.train.pair_samples import PairSamples
from fastrl.train.precompute import precompute
from fastrl.train.preference_config import PreferenceConfig


class PreferenceTrainer(PairSamples, AnswerTrainer):
    """A `Trainer` with a reference, and the constructor of those that have one.

    A subclass names its `_config`, how rows are prepared (`_prepare`) and collated (`_collator`),
    and what the reference says of a batch (`_ref_columns`: a tensor (rows,) for each column the
    dataset may hold already).

    Args:
        model: a name or folder, a transformers model, or a PEFT model.
        ref_model: what the policy is compared with; None: a frozen copy of `model`, or with an
            adapter the model without it.
        args: the trainer's config or `TrainingArguments`; None: defaults, and a folder named by
            the model.
        data_collator: makes batches of prepared rows; None: ours.
        train_dataset: rows; the trainer says which columns.
        eval_dataset: the same, or a dict of several.
        processing_class: the tokenizer; None: the model's own.
        compute_metrics, callbacks, optimizers: as in `transformers.Trainer`.
        quantization_config: for a model given by name.
        peft_config: train an adapter of this kind.

    Raises:
        ValueError, TypeError: before training, naming the argument, row or column.
    """

    _config: ClassVar[type[PreferenceConfig]]

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        ref_model: PreTrainedModel | nn.Module | None = None,
        args: Any = None,
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
        args = self._settled(model, args, train_dataset, data_collator)
        model, reference, tokenizer = self._assemble(
            model, ref_model, args, processing_class, quantization_config, peft_config
        )
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            tokenizer,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._start_reference(reference)

    def _prepared(
        self, dataset: Any, tokenizer: PreTrainedTokenizerBase, args: Any, name: str
    ) -> Any:
        """Token ids; in a call as of TRL 0.7 or 0.11 every prompt begins with BOS, as it did."""
        if self._api_generation != "1":
            dataset = begin_with_bos(dataset, tokenizer, name)
        return super()._prepared(dataset, tokenizer, args, name)

    def _assemble(
        self,
        model: Any,
        ref_model: Any,
        args: Any,
        processing_class: Any,
        quantization_config: Any,
        peft_config: Any,
    ) -> tuple[nn.Module, nn.Module | None, Any]:
        """Policy, separate reference or None, and tokenizer."""
        model, tokenizer = self._policy(
            model, args, processing_class, quantization_config, peft_config
        )
        once = args.precompute_ref_log_probs
        reference = reference_model(model, ref_model, peft_config is not None, asked_once=once)
        self.router_aux_loss_coef = setup.router_aux_loss_coef(model, args.router_aux_loss_coef)
        if args.disable_dropout:
            setup.disable_dropout(model, reference)
        return model, reference, tokenizer

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
        for callback in self.callback_handler.callbacks:
            self._show_reference(callback)
        if args.precompute_ref_log_probs:
            size = args.precompute_ref_batch_size or args.per_device_train_batch_size
            self.train_dataset = self._precomputed(self.train_dataset, size)
            self.eval_dataset = setup.each(self.eval_dataset, self._precomputed_for_evaluation)

    def _show_reference(self, callback: Any) -> None:
        """Tell a callback that moves the reference which model it is, if it may be moved."""
        if not hasattr(callback, "follow_with"):
            return
        moves = getattr(callback, "update_ref_model", False)
        if moves and self.args.precompute_ref_log_probs:
            raise ValueError(
                "update_ref_model changes the reference while precompute_ref_log_probs keeps what "
                "it said before training; leave one out"
            )
        callback.follow_with(self._reference.model)

    def add_callback(self, callback: Any) -> None:
        """As transformers', and the callback learns of the reference."""
        super().add_callback(callback)
        if "_reference" in vars(self):
            self._show_reference(self.callback_handler.callbacks[-1])

    def _as_reference(self) -> AbstractContextManager[nn.Module]:
        return self._reference.speaking(self.model)

    @property
    def ref_model(self) -> nn.Module | None:
        """The reference, where it is a model apart."""
        return self._reference.model

    def _ref_columns(self, model: nn.Module, inputs: Batch) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def _precomputed(self, dataset: Any, batch_size: int) -> Any:
        key = self._reference.key(self.model)
        score = lambda batch: self._ref_columns(self.model, batch)  # noqa: E731
        return precompute(self, dataset, batch_size, key, score)

    def _precomputed_for_evaluation(self, dataset: Any) -> Any:
        args = self.args
        size = args.precompute_ref_batch_size or args.per_device_eval_batch_size
        return self._precomputed(dataset, size)

    def prepare_eval_dataset(self, dataset: Any) -> Any:
        """As the evaluation dataset given at construction."""
        rows = super().prepare_eval_dataset(dataset)
        if not self.args.precompute_ref_log_probs:
            return rows
        gone = self.ref_model is None and not adapters.is_peft(self.model)
        if gone and self.state.global_step > 0:
            raise ValueError(
                "eval_dataset: with precompute_ref_log_probs and no ref_model the reference was "
                "the policy before training, which is gone; give this dataset at construction, "
                "or a ref_model"
            )
        return self._precomputed_for_evaluation(rows)

    def _logits(self, model: nn.Module, inputs: Batch) -> dict[str, torch.Tensor]:
        """All logits, for `compute_metrics`, by a plain forward of the padded rows."""
        names = ("input_ids", "attention_mask")
        with torch.no_grad():
            logits = model(**{name: inputs[name] for name in names}, use_cache=False).logits
        return {"logits": logits, "labels": inputs["completion_mask"]}
