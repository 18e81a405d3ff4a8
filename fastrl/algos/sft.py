"""Supervised fine-tuning: learn given tokens, all of them or only the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed

from fastrl.algos.sft_config import SFTConfig
from fastrl.data.collate import DataCollatorForLanguageModeling
from fastrl.data.collate_legacy import DataCollatorForCompletionOnlyLM
from fastrl.data.constant_length import ConstantLengthDataset
from fastrl.data.prepare_legacy import texts_of_sft
from fastrl.data.prepare_sft import prepare_sft
from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.sft import SFT
from fastrl.models.policy import logprobs
from fastrl.train import setup
from fastrl.train.batch import IGNORED, Batch, labelled_tokens
from fastrl.train.offline import Loss, OfflineTrainer

Optimizers = tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None]


def sft_loss(logp: torch.Tensor, count: torch.Tensor | float, loss_type: str) -> torch.Tensor:
    """Cross-entropy of the learnt tokens, over a given number of tokens.

        nll: -Σ log p / count
        dft: -Σ sg(p) log p / count, each token weighed by its own probability without gradient
             (Dynamic Fine-Tuning, arXiv 2508.05629, equation 9)

    Args:
        logp: (B, T - 1) log-probabilities of the tokens, 0 where they are not learnt.
        count: tokens learnt in the whole optimizer step; below 1 counts as 1.
        loss_type: which of the two.

    Returns:
        a scalar.
    """
    weight = logp.detach().exp() if loss_type == "dft" else 1.0
    return -(weight * logp).sum() / torch.as_tensor(count, device=logp.device).clamp(min=1)


@accepts_legacy(SFT, SFTConfig)
class SFTTrainer(OfflineTrainer):
    """Supervised fine-tuning of a causal language model, without computing padding.

    Args:
        model: a name or folder, a transformers model, or a PEFT model.
        args: `SFTConfig` or `TrainingArguments`; None: defaults, and a folder named by the model.
        data_collator: makes batches of prepared rows; None: ours.
        train_dataset: rows of text, conversations, prompts with completions, or token ids; or a
            `ConstantLengthDataset`, whose rows are taken as they are.
        eval_dataset: the same, or a dict of several.
        processing_class: the tokenizer; None: the model's own.
        compute_loss_func: (model's own output, labels, num_items_in_batch) -> loss.
        compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs,
        preprocess_logits_for_metrics: as in `transformers.Trainer`.
        quantization_config: for a model given by name.
        peft_config: train an adapter of this kind.
        formatting_func: a row -> its text.

    Raises:
        ValueError, TypeError: before training, naming the argument, row or column.
    """

    _name = "SFT"
    _tag_names = ("fastrl", "sft")
    counts_labels = True
    _config: ClassVar[type[SFTConfig]] = SFTConfig
    _api_generation = "1"

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        args: SFTConfig | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | Mapping[str, Any] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_loss_func: Callable[..., torch.Tensor] | None = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: Optimizers = (None, None),
        optimizer_cls_and_kwargs: tuple[type, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[..., torch.Tensor] | None = None,
        quantization_config: Any = None,
        peft_config: Any = None,
        formatting_func: Callable[[dict[str, Any]], str] | None = None,
    ) -> None:
        args = self._config.of(args, setup.run_name(model, self._name))
        self._check(train_dataset, args, data_collator)
        set_seed(args.seed)
        self._formatting_func = formatting_func
        model, tokenizer = self._assemble(
            model, args, processing_class, quantization_config, peft_config
        )
        rows = self._prepare(train_dataset, tokenizer, args, "train")
        super().__init__(
            model,
            args,
            self._collator(data_collator, tokenizer, args),
            rows,
            setup.each(eval_dataset, lambda d: self._prepare(d, tokenizer, args, "eval")),
            tokenizer,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )

    @staticmethod
    def _check(dataset: Any, args: SFTConfig, data_collator: Any) -> None:
        setup.check_collator(data_collator)
        if isinstance(dataset, ConstantLengthDataset):
            if not dataset.infinite:
                return
            dataset = dataset.rows()
        setup.check_dataset("train_dataset", dataset, args)

    def _assemble(
        self,
        model: Any,
        args: SFTConfig,
        processing_class: PreTrainedTokenizerBase | None,
        quantization_config: Any,
        peft_config: Any,
    ) -> tuple[nn.Module, PreTrainedTokenizerBase]:
        """Model with its adapter, and tokenizer; both agree on padding, end and template."""
        model = setup.policy(model, args, quantization_config)
        tokenizer = setup.tokenizer(processing_class, model, args)
        setup.set_eos_token(tokenizer, model, args.eos_token)
        model, tokenizer, added = setup.chat_template(tokenizer, model, args.chat_template_path)
        peft_config = setup.with_new_tokens(peft_config, added)
        model = setup.with_adapter(model, peft_config, args)
        setup.set_pad_token(tokenizer, model, args)
        self.router_aux_loss_coef = setup.router_aux_loss_coef(model, args.router_aux_loss_coef)
        return model, tokenizer

    def _collator(
        self, given: Any, tokenizer: PreTrainedTokenizerBase, args: SFTConfig
    ) -> Callable[[list[Any]], dict[str, Any]]:
        """Ours unless another is given, which could not tell apart the sequences of one row."""
        packed = args.packing and args.packing_strategy != "wrapped"
        whole = args.padding_free or packed
        # It would find the last answer of a row only, where several rows run on in one.
        searched = args.packing and isinstance(given, DataCollatorForCompletionOnlyLM)
        if given is not None:
            if (whole or searched) and not isinstance(given, DataCollatorForLanguageModeling):
                name = "padding_free" if args.padding_free else "packing"
                raise ValueError(
                    f"data_collator: with {name}=True one row holds several sequences, which only "
                    f"fastrl's own collator keeps apart; leave data_collator or {name} out"
                )
            return given
        return DataCollatorForLanguageModeling(
            pad_token_id=tokenizer.pad_token_id,
            padding_free=whole,
            pad_to_multiple_of=args.pad_to_multiple_of,
        )

    def _prepare(
        self, dataset: Any, tokenizer: PreTrainedTokenizerBase, args: SFTConfig, name: str
    ) -> Any:
        """Token ids and labels, packed where asked for."""
        if isinstance(dataset, ConstantLengthDataset):
            return dataset.rows()
        if (args.dataset_kwargs or {}).get("skip_prepare_dataset"):
            return dataset
        packing = args.packing if name == "train" else args.eval_packing
        modern = self._api_generation == "1"
        if not modern and self._formatting_func is None:
            dataset = texts_of_sft(dataset, tokenizer, args.dataset_text_field, name)
        return prepare_sft(
            dataset, tokenizer, args, self._formatting_func, name, packing, end_with_eos=modern
        )

    def prepare_eval_dataset(self, dataset: Any) -> Any:
        """As the evaluation dataset given at construction."""
        return self._prepare(dataset, self.processing_class, self.args, "eval")

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "labels", "seq_lengths"]

    def loss(self, model: nn.Module, inputs: Batch, count: torch.Tensor | int | None) -> Loss:
        """The loss of one micro-batch, and its metrics.

        Args:
            model: what the trainer calls.
            inputs: `input_ids`, `labels` (B, T) with `attention_mask`, or packed in one row.
            count: labels of the whole optimizer step over all processes; None: this batch's own.
        """
        tokens = labelled_tokens(inputs)
        with_router = self.router_aux_loss_coef > 0
        of_logits = self.compute_loss_func is not None or self.label_smoother is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not of_logits):
            scores = logprobs(model, tokens, stats=("top1",), aux_loss=with_router)
        valid = scores.mask.sum()
        if of_logits:
            loss = self._loss_of_logits(model, inputs, count)
        else:
            loss = sft_loss(scores.logp, valid if count is None else count, self.args.loss_type)
        self.metrics.ratio("entropy", scores.entropy.sum(), valid)
        self.metrics.ratio("mean_token_accuracy", scores.stats["top1"].sum(), valid)
        return Loss(loss, tokens, scores.aux_loss)

    def _loss_of_logits(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """The caller's loss, or label smoothing: both need every logit."""
        plain = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**plain, use_cache=False)
        if self.compute_loss_func is not None:
            return self.compute_loss_func(
                outputs, inputs["labels"], num_items_in_batch=num_items_in_batch
            )
        loss = self.label_smoother(outputs, inputs["labels"], shift_labels=True)
        if num_items_in_batch is None:
            return loss
        # The smoother takes the mean over this batch's labels; the step's own count is asked for.
        own = (inputs["labels"][..., 1:] != IGNORED).sum()
        return loss * own / num_items_in_batch

    def _logits(self, model: nn.Module, inputs: Batch) -> dict[str, torch.Tensor]:
        plain = {name: value for name, value in inputs.items() if name != "labels"}
        with torch.no_grad():
            logits = model(**plain, use_cache=False).logits
        return {"logits": logits, "labels": inputs["labels"]}
