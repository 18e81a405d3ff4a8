"""What trainers that compare with a frozen policy share: DPO and KTO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastrl.models import adapters
from fastrl.train import setup
from fastrl.train.batch import Batch
from fastrl.train.callbacks import SyncRefModelCallback
from fastrl.train.frozen import Reference, reference_model
from fastrl.train.precompute import precompute
from fastrl.train.trainer import Trainer


class PreferenceTrainer(Trainer):
    """A `Trainer` with a reference.

    A subclass gives `_prepare` (rows for its collator) and `_ref_columns` (what the reference says
    of a batch, a tensor (rows,) for each column of that name the dataset may hold already).
    """

    _prepare: Callable[[Any, Any, Any, str], Any]

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
        model = setup.policy(model, args, quantization_config)
        tokenizer = setup.tokenizer(processing_class, model, args)
        setup.set_pad_token(tokenizer, model, args)
        model = setup.with_adapter(model, peft_config, args)
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
        if args.precompute_ref_log_probs:
            size = args.precompute_ref_batch_size or args.per_device_train_batch_size
            self.train_dataset = self._precomputed(self.train_dataset, size)
            self.eval_dataset = setup.each(self.eval_dataset, self._precomputed_for_evaluation)

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
        rows = type(self)._prepare(dataset, self.processing_class, self.args, "eval")
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
