"""Supervised fine-tuning by calls of `step()`, with whatever one likes in between."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

from fastrl.algos.iterative_sft_config import IterativeSFTConfig
from fastrl.algos.sft import Optimizers, sft_loss
from fastrl.data.collate import DataCollatorForLanguageModeling
from fastrl.data.step_rows import Row, StepRows
from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.iterative_sft import ITERATIVE_SFT
from fastrl.models import adapters
from fastrl.models.embeddings import vocabulary_size
from fastrl.models.policy import logprobs, prepare_policy
from fastrl.models.recomputing import enable_gradient_checkpointing
from fastrl.train import setup
from fastrl.train.agreement import agreed
from fastrl.train.batch import Batch, labelled_tokens
from fastrl.train.descent import Descent
from fastrl.train.device_cache import emptied_device_cache
from fastrl.train.trainer import Trainer

Collator = Callable[[list[Any]], Mapping[str, Any]]
_COLUMNS = ("input_ids", "attention_mask", "labels")


@accepts_legacy(ITERATIVE_SFT, IterativeSFTConfig)
class IterativeSFTTrainer(Trainer):
    """`step()` learns the rows it is given once, in batches of `per_device_train_batch_size`.

    Each batch's loss is the mean over its own learnt tokens; batches accumulate over calls. No
    padding is computed for a decoder-only model; an encoder-decoder gets padded inputs. Nothing is
    saved but by `save_model`.

    Args:
        model: a name or folder, a transformers model, causal or encoder-decoder, or a PEFT model.
        args: `IterativeSFTConfig` or `TrainingArguments`; None: defaults, and a folder named by
            the model. `max_steps` is the length of the learning rate's schedule, in optimizer steps
            times processes: the schedule moves on by the number of processes at each.
        data_collator: makes a batch of rows of `input_ids` and `attention_mask`, 1-D tensors, and
            of `labels` where these were given or the model is an encoder-decoder; None: ours.
        eval_dataset: tokenised rows, or a dict of several, evaluated every `eval_steps`.
        processing_class: the tokenizer; None: the model's own. Its truncation side becomes that of
            `truncation_mode`.
        optimizers: optimizer and scheduler; None: as `args` say.
        preprocess_logits_for_metrics, compute_metrics: as in `transformers.Trainer`.

    Raises:
        ValueError: no tokenizer, no model, neither a scheduler nor `max_steps`, `eval_steps`
            without an `eval_dataset`.
    """

    _name = "Iterative-SFT"
    _tag_names = ("fastrl", "iterative-sft")

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        args: IterativeSFTConfig | None = None,
        data_collator: Collator | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        optimizers: Optimizers = (None, None),
        preprocess_logits_for_metrics: Callable[..., torch.Tensor] | None = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
    ) -> None:
        args = IterativeSFTConfig.of(args, setup.run_name(model, self._name))
        setup.check_collator(data_collator)
        _check_parts(model, args, processing_class, optimizers, eval_dataset)
        model, tokenizer = self._assemble(model, args, processing_class)
        self.is_encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
        self.is_peft_model = adapters.is_peft(model)
        self._own_collator = data_collator is None
        self.max_length = args.max_length
        self.truncation_mode = args.truncation_mode
        self.optimize_device_cache = args.optimize_device_cache
        super().__init__(
            model,
            args,
            data_collator or self._collator(tokenizer),
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            compute_metrics=compute_metrics,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self._prepare_to_step()

    def _assemble(
        self, model: Any, args: IterativeSFTConfig, processing_class: Any
    ) -> tuple[nn.Module, PreTrainedTokenizerBase]:
        model = setup.policy(model, args, None)
        tokenizer = setup.tokenizer(processing_class, model, args)
        model = setup.with_adapter(model, None, args)
        setup.set_pad_token(tokenizer, model, args)
        if args.gradient_checkpointing:
            enable_gradient_checkpointing(model, args.gradient_checkpointing_kwargs)
        return model, tokenizer

    def _make_ready(self, model: nn.Module) -> None:
        if not self.is_encoder_decoder:
            prepare_policy(model)

    def _collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        if self.is_encoder_decoder:
            return DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8)
        return DataCollatorForLanguageModeling(tokenizer.pad_token_id)

    def _prepare_to_step(self) -> None:
        """What `train()` does before its loop."""
        args = self.args
        self.processing_class.truncation_side = (
            "left" if self.truncation_mode == "keep_end" else "right"
        )
        self.create_optimizer_and_scheduler(args.max_steps)
        self.model_wrapped, self.optimizer, self.lr_scheduler = self.accelerator.prepare(
            self.model, self.optimizer, self.lr_scheduler
        )
        trained = [p for p in self.model_wrapped.parameters() if p.requires_grad]
        limit = args.max_grad_norm or None
        self._descend = Descent(self.accelerator, self.optimizer, trained, limit)
        self.tr_loss = torch.zeros((), device=args.device)  # summed since the last log
        self._last_logged = 0

    def step(
        self,
        input_ids: list[torch.Tensor] | None = None,
        attention_mask: list[torch.Tensor] | None = None,
        labels: list[torch.Tensor] | None = None,
        texts: list[str] | None = None,
        texts_labels: list[str] | None = None,
    ) -> None:
        """Learn some rows, in an order drawn by torch's seed.

        Gradients are zeros after every `gradient_accumulation_steps`-th batch, which is when the
        optimizer steps; those of the batches since then are kept for the next call.
        Each argument may be a column of a `datasets.Dataset`.

        Args:
            input_ids: 1-D int64 tensors; or `texts`, which win.
            attention_mask: as long each, 0 on tokens to leave out; None: all count.
            labels: what is learnt, -100 for nothing; as long as the input for a decoder-only
                model, rows of their own for an encoder-decoder; None: the input.
            texts: what is learnt, or read by an encoder-decoder.
            texts_labels: labels as texts; for a decoder-only model of as many tokens.

        Raises:
            ValueError: for input that cannot be learnt, as `fastrl.data.step_rows` says; nothing
                is changed then.
            FloatingPointError: loss or gradient are not finite; that optimizer step is not taken.
        """
        with agreed(self.accelerator, "the check of the step's rows"):
            read = self._reader()
            rows = read(input_ids, attention_mask, labels, texts, texts_labels)
        self._agree_on(len(rows))
        named = labels is not None or texts_labels is not None
        size = self.args.per_device_train_batch_size
        self.model.train()
        with emptied_device_cache(self.optimize_device_cache), self._noised(), self._counted():
            for batch in DataLoader(rows, batch_size=size, shuffle=True, collate_fn=list):
                self._learn(batch, named)

    def _reader(self) -> StepRows:
        return StepRows(
            self.processing_class,
            self.is_encoder_decoder,
            self.max_length,
            self.truncation_mode == "keep_end",
            vocabulary_size(self.model),
        )

    def _agree_on(self, count: int) -> None:
        """Every process makes as many passes, or some would wait for ever."""
        if self.accelerator.num_processes == 1:
            return
        counts = self.accelerator.gather(torch.tensor([count], device=self.args.device)).tolist()
        if len(set(counts)) > 1:
            raise ValueError(f"step() got {counts} rows on the ranks: give each as many")

    @contextmanager
    def _noised(self) -> Iterator[None]:
        """NEFTune's noise on the embeddings, if `neftune_noise_alpha` asks for it."""
        alpha = self.args.neftune_noise_alpha
        if alpha is None:
            yield
            return
        handle = activate_neftune(self.model, alpha)
        try:
            yield
        finally:
            deactivate_neftune(self.model, handle)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Batches counted by accelerate, up to `gradient_accumulation_steps`.

        transformers leaves that to its own loop. The number is one for the whole process, so it is
        ours during a step only.
        """
        accelerator = self.accelerator
        before = accelerator.gradient_accumulation_steps
        accelerator.gradient_accumulation_steps = self.args.gradient_accumulation_steps
        try:
            yield
        finally:
            accelerator.gradient_accumulation_steps = before

    def _learn(self, batch: list[Row], named: bool) -> None:
        ids, masks, labels = ([row[name] for row in batch] for name in _COLUMNS)
        with self.accelerator.accumulate(self.model_wrapped):
            wanted = labels if named or self._own_collator or self.is_encoder_decoder else None
            inputs = self.prepare_model_inputs(ids, masks, wanted)
            with self.compute_loss_context_manager():
                loss = self.compute_loss(self.model_wrapped, inputs)
            self._descend(loss, loss)
            if self.lr_scheduler is not None:
                self.lr_scheduler.step()
        self.state.global_step += 1
        self.tr_loss += loss.detach()
        self._maybe_log_save_evaluate()

    def prepare_model_inputs(
        self,
        input_ids: list[torch.Tensor],
        attention_mask: list[torch.Tensor] | None,
        labels: list[torch.Tensor] | None,
    ) -> Batch:
        """A batch on the device: the collator's tensors (B, T) of some rows of 1-D tensors."""
        columns: dict[str, list[Any] | None] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask or [torch.ones_like(ids) for ids in input_ids],
            "labels": labels,
        }
        if self.is_encoder_decoder and self._own_collator:
            # transformers' collator makes tensors of them, slowly if they are tensors already.
            columns = {name: [row.tolist() for row in rows or []] for name, rows in columns.items()}
        given = {name: values for name, values in columns.items() if values is not None}
        rows = [dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True)]
        batch = dict(self.data_collator(rows))
        batch.pop("decoder_input_ids", None)  # the model makes them of the labels
        return self._prepare_inputs(Batch(batch))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The mean cross-entropy of a batch's labels.

        Args:
            model: what the trainer calls.
            inputs: `input_ids`, `attention_mask`, `labels`, (B, T) each.
            return_outputs: also return {"logits": (B, T, V), "labels"}.
            num_items_in_batch: has no part in it; the mean is over this batch.

        Returns:
            the loss, a scalar; or (loss, outputs).
        """
        if self.is_encoder_decoder or return_outputs or self.label_smoother is not None:
            labels = inputs["labels"]
            loss, outputs = super().compute_loss(model, dict(inputs), return_outputs=True)
            loss = self.checked(loss)
            return (
                (loss, {"logits": outputs["logits"], "labels": labels}) if return_outputs else loss
            )
        scores = logprobs(model, labelled_tokens(inputs))
        return self.checked(sft_loss(scores.logp, scores.mask.sum(), "nll"))

    def prepare_eval_dataset(self, dataset: Any) -> Any:
        """The dataset as it is: tokenised rows."""
        return dataset

    def _maybe_log_save_evaluate(self) -> None:
        """After each batch: evaluate every `eval_steps`, log every `logging_steps` batches.

        `logging_first_step` logs the first one too.
        """
        step = self.state.global_step
        if self._due(self.args.eval_steps):
            self.evaluate(self.eval_dataset)
            self.model.train()
        first = step == 1 and self.args.logging_first_step
        if first or (self._due(self.args.logging_steps) and self.args.logging_strategy != "no"):
            mean = self.accelerator.gather(self.tr_loss[None]).mean().item()
            logs = {"loss": mean / (step - self._last_logged)}
            self.tr_loss.zero_()
            self._last_logged = step
            self.log(logs | {"learning_rate": self._get_learning_rate()})

    def _due(self, every: float | None) -> bool:
        """Whether it is time, for a number of batches, or below 1 a share of `max_steps`."""
        if not every:
            return False
        if every < 1:
            every = math.ceil(every * max(self.args.max_steps, 1))
        return self.state.global_step % every == 0


def _check_parts(
    model: Any,
    args: IterativeSFTConfig,
    processing_class: Any,
    optimizers: Optimizers,
    eval_dataset: Any,
) -> None:
    if processing_class is not None and not isinstance(processing_class, PreTrainedTokenizerBase):
        raise ValueError(
            "processing_class (tokenizer) must be a transformers tokenizer, got "
            f"{type(processing_class).__name__}: AutoTokenizer.from_pretrained(name) loads one"
        )
    loaded = isinstance(model, PreTrainedModel) or adapters.is_peft(model)
    if not loaded and not isinstance(model, str):
        raise ValueError(
            f"model must be a transformers model or its name, got {type(model).__name__}: "
            "AutoModelForCausalLM.from_pretrained(name) loads one"
        )
    if loaded and not model.can_generate():
        warnings.warn(f"model: {type(model).__name__} has no generate()", stacklevel=4)
    if optimizers[1] is None and args.max_steps <= 0:
        raise ValueError(
            "max_steps is the length of the learning rate's schedule: set args.max_steps to the "
            "optimizer steps of all step() calls (batches / gradient_accumulation_steps) times the "
            "processes, or give optimizers=(optimizer, scheduler)"
        )
    if args.eval_steps and eval_dataset is None:
        raise ValueError(f"eval_steps={args.eval_steps}: there is no eval_dataset to evaluate")
