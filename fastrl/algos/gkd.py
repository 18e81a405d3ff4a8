"""Generalized knowledge distillation: a student learns its teacher's next-token distributions.

On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes, arXiv 2306.13649.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from fastrl.algos.gkd_config import GKDConfig
from fastrl.algos.sft import Optimizers, SFTTrainer
from fastrl.data.collate_chatml import DataCollatorForChatML
from fastrl.data.conversations import longest_answers, require_conversations
from fastrl.data.padding import pad
from fastrl.legacy.binding import accepts_legacy
from fastrl.legacy.gkd import GKD
from fastrl.models.divergence import divergences
from fastrl.train import setup
from fastrl.train.batch import IGNORED, Batch, describe, labelled_tokens
from fastrl.train.drawing import InProcess, ends
from fastrl.train.frozen import Reference, require_one_vocabulary
from fastrl.train.offline import Loss
from fastrl.train.teacher import teacher_model as checked_teacher
from fastrl.types import Spans

_LONGEST_LOOKED_AT = 32  # rows, those with the longest answers, that are tried
_NO_ROOM = (
    "its answer fills max_length, so nothing is left of the prompt that is to be answered; raise "
    "max_length, or leave such rows out"
)


def gkd_loss(divergence: torch.Tensor, count: torch.Tensor | float) -> torch.Tensor:
    """Σ D / count: the mean over answers' tokens of how far the student is from its teacher.

    Args:
        divergence: (B, T - 1), 0 where nothing is learnt. With p the student's distribution, q the
            teacher's and m = (1 - β) p + β q (section 2 of the paper)

                β = 0       KL(q ‖ p)
                0 < β < 1   β KL(q ‖ m) + (1 - β) KL(p ‖ m)
                β = 1       KL(p ‖ q)
        count: tokens learnt in the whole optimizer step; below 1 counts as 1.

    Returns:
        a scalar.
    """
    return divergence.sum() / torch.as_tensor(count, device=divergence.device).clamp(min=1)


@dataclass
class _Described:
    """A collator whose batches come with what the host knows of their rows."""

    collator: Callable[[list[Any]], dict[str, Any]]

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        batch = self.collator(rows)
        return {**batch, "spans": describe(batch, batch["labels"] != IGNORED)}


class _Speaker(InProcess):
    """A model that draws at a temperature and cuts nothing off."""

    def _settings(self, args: Any) -> dict[str, Any]:
        return {
            "do_sample": True,
            "max_new_tokens": args.max_new_tokens,
            "temperature": args.temperature,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "pad_token_id": self._tokenizer.pad_token_id,
            "bos_token_id": self._tokenizer.bos_token_id,
            "eos_token_id": ends(self._tokenizer, self.model) or None,
        }

    def speak(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """One answer to each prompt, with the token that ends it."""
        answers = self.answers(self.requests(prompts, None))
        return [list(one.token_ids) for several in answers for one in several]


def _prompts(batch: Mapping[str, Any]) -> list[list[int]]:
    """The prompts of a batch as token ids, without their padding."""
    if not {"prompts", "prompt_attention_mask"} <= set(batch):
        raise ValueError(
            "data_collator must give prompts and prompt_attention_mask (B, P), padded in front, as "
            "answers are drawn to them; add them, or set lmbda=0 and seq_kd=False"
        )
    rows = zip(batch["prompts"].tolist(), batch["prompt_attention_mask"].tolist(), strict=True)
    return [[token for token, real in zip(ids, mask, strict=True) if real] for ids, mask in rows]


def answered(
    batch: Mapping[str, Any], answers: Sequence[Sequence[int]], pad_token_id: int
) -> dict[str, Any]:
    """A batch whose rows end with other answers, and what the host knows of its rows.

    Args:
        batch: with `prompts` and `prompt_attention_mask` (B, P), padded in front.
        answers: token ids, one list a row.
        pad_token_id: what is behind the shorter ones.
    """
    prompts, prompt_mask = batch["prompts"], batch["prompt_attention_mask"]
    rows = [torch.tensor(answer, dtype=prompts.dtype) for answer in answers]
    ids = pad(rows, pad_token_id).to(prompts.device)
    mask = pad([torch.ones_like(row) for row in rows], 0).to(prompts.device)
    lengths = [len(prompt) for prompt in _prompts(batch)]
    width = prompts.shape[1]
    spans = Spans(
        (len(rows), width + ids.shape[1]),
        list(range(len(rows))),
        [width - length for length in lengths],
        [length + len(row) for length, row in zip(lengths, rows, strict=True)],
        lengths,
    )
    return {
        **batch,
        "input_ids": torch.cat([prompts, ids], dim=1),
        "attention_mask": torch.cat([prompt_mask, mask.to(prompt_mask.dtype)], dim=1),
        "labels": torch.cat(
            [torch.full_like(prompts, IGNORED), ids.masked_fill(mask == 0, IGNORED)], dim=1
        ),
        "spans": spans,
    }


@accepts_legacy(GKD, GKDConfig)
class GKDTrainer(SFTTrainer):
    """Generalized knowledge distillation on conversations, without computing padding.

    Of the micro-batches a share `args.lmbda`, chosen by Python's random numbers, is learnt with
    answers that the student draws; the others with those of the dataset, or with `args.seq_kd` with
    the teacher's. Every token of an answer is compared with the teacher's distribution.

    The loss is TRL's but for one thing: it is the mean over the tokens that are learnt, also where
    they were drawn; TRL 1.16 divides by the number of tokens that the dataset's answers had.

    Args:
        model: the student: a name or folder, a transformers model, or a PEFT model.
        teacher_model: a name or folder, or a transformers model with the student's vocabulary;
            None: the one that `args.teacher_model_name_or_path` names. It is not trained.
        args: a `GKDConfig`; None: defaults, and a folder named by the model.
        data_collator: makes batches like `DataCollatorForChatML`'s, which is used if None.
        train_dataset: rows with `messages`, a conversation whose last turn is learnt; or with
            `input_ids` and `prompt`.
        eval_dataset: the same, or a dict of several.
        processing_class: the tokenizer; None: the student's own.
        compute_metrics, callbacks, optimizers, preprocess_logits_for_metrics: as in
            `transformers.Trainer`.
        peft_config: train an adapter of this kind.
        formatting_func: not possible, as rows are conversations.

    Raises:
        ValueError, TypeError: before training, naming the argument, row or column.
    """

    _name = "GKD"
    _tag_names = ("fastrl", "gkd")
    _paper: ClassVar[dict[str, str]] = {
        "title": "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
        "id": "2306.13649",
    }
    _config = GKDConfig

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module | None = None,
        teacher_model: str | PreTrainedModel | nn.Module | None = None,
        args: GKDConfig | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | Mapping[str, Any] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: Optimizers = (None, None),
        preprocess_logits_for_metrics: Callable[..., torch.Tensor] | None = None,
        peft_config: Any = None,
        formatting_func: Callable[[dict[str, Any]], str] | None = None,
    ) -> None:
        args = self._config.of(args, setup.run_name(model, self._name))
        if formatting_func is not None:
            raise ValueError("formatting_func: rows are conversations; map them to `messages`")
        setup.check_collator(data_collator)
        self._own_collator = data_collator is None
        self._given_teacher = checked_teacher(teacher_model, model, args)
        self.lmbda, self.beta, self.seq_kd = args.lmbda, args.beta, args.seq_kd
        self.temperature = args.temperature
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            peft_config=peft_config,
        )
        self._set_speakers()
        self._check_room()

    def _check_room(self) -> None:
        """See that there are prompts to answer, by the rows with the longest answers."""
        if not self._own_collator or (self._student_speaks or self._teacher_speaks) is None:
            return
        for row in longest_answers(self.train_dataset, _LONGEST_LOOKED_AT):
            (prompt,) = _prompts(self.data_collator([self.train_dataset[row]]))
            if not prompt:
                raise ValueError(f"train_dataset row {row}: {_NO_ROOM}")

    def _set_speakers(self) -> None:
        """Place the teacher, and see that those who draw answers can."""
        teacher = self._given_teacher.requires_grad_(False).eval()
        self._teacher = Reference(self.accelerator, teacher)
        self._student_speaks = self._teacher_speaks = None
        if self.lmbda > 0:
            self._student_speaks = _Speaker(self.model, self.args, self.processing_class)
        if self.seq_kd and self.lmbda < 1:
            with self._teacher.speaking(self.model) as speaker:
                self._teacher_speaks = _Speaker(speaker, self.args, self.processing_class)

    @property
    def teacher_model(self) -> nn.Module:
        """The teacher, as what wraps it for several processes."""
        assert self._teacher.model is not None
        return self._teacher.model

    def _assemble(
        self,
        model: Any,
        args: Any,
        processing_class: PreTrainedTokenizerBase | None,
        quantization_config: Any,
        peft_config: Any,
    ) -> tuple[nn.Module, PreTrainedTokenizerBase]:
        student, tokenizer = super()._assemble(
            model, args, processing_class, quantization_config, peft_config
        )
        require_one_vocabulary(student, "teacher_model", self._given_teacher)
        if args.disable_dropout:
            setup.disable_dropout(student)
        return student, tokenizer

    def _collator(
        self, given: Any, tokenizer: PreTrainedTokenizerBase, args: Any
    ) -> Callable[[list[Any]], dict[str, Any]]:
        if given is not None:
            return given
        return _Described(
            DataCollatorForChatML(tokenizer, max_length=args.max_length, truncation_mode="keep_end")
        )

    def _prepare(
        self, dataset: Any, tokenizer: PreTrainedTokenizerBase, args: Any, name: str
    ) -> Any:
        """The rows as they are: the collator prepares them."""
        if not self._own_collator:
            return dataset
        require_conversations(f"{name}_dataset", dataset)
        columns = getattr(dataset, "column_names", None) or ()
        if "messages" in columns and tokenizer.chat_template is None:
            raise ValueError(
                "processing_class has no chat template, by which messages become text; take the "
                "tokenizer of an instruct model, or set args.chat_template_path"
            )
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        if self._own_collator:
            self._signature_columns = ["messages", "prompt", "input_ids", "attention_mask"]
        elif self._signature_columns is None:
            rows = (self.train_dataset, self.eval_dataset)
            self._signature_columns = sorted(
                {name for part in rows for name in getattr(part, "column_names", None) or ()}
            )

    # --- answers ---------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of an optimizer step, answers drawn, and their number of labels."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._student_speaks is None and self._teacher_speaks is None:
            return batches, count
        if self._to_restore is not None:
            self._load_rng_state(self._to_restore)
            self._restored = True
        batches = self._with_answers(batches)
        return batches, self._get_num_items_in_batch(batches, device)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        self._restored = False
        self._to_restore = None if self.args.ignore_data_skip else resume_from_checkpoint
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Once: transformers would go back again after the first answers have been drawn."""
        if self._restored:
            self._restored = False
            return
        self._to_restore = None
        super()._load_rng_state(checkpoint)

    def _with_answers(self, batches: list[Any]) -> list[Any]:
        coins = [self.lmbda > 0 and random.random() <= self.lmbda for _ in batches]
        if self.accelerator.num_processes > 1:
            (coins,) = broadcast_object_list([coins])  # all processes run one model together
        found = list(batches)
        for speaker, side in ((self._student_speaks, True), (self._teacher_speaks, False)):
            chosen = [i for i, coin in enumerate(coins) if coin == side]
            if speaker is None or not chosen:
                continue
            prompts = [_prompts(batches[i]) for i in chosen]
            if not all(ids for several in prompts for ids in several):
                raise ValueError(f"a row of train_dataset: {_NO_ROOM}")
            answers = iter(speaker.speak([ids for several in prompts for ids in several]))
            for i, several in zip(chosen, prompts, strict=True):
                own = [next(answers) for _ in several]
                found[i] = answered(batches[i], own, self.processing_class.pad_token_id)
        return found

    # --- loss ------------------------------------------------------------------------------------

    def loss(self, model: nn.Module, inputs: Batch, count: torch.Tensor | int | None) -> Loss:
        """The loss of one micro-batch, and its metrics.

        Args:
            model: what the trainer calls.
            inputs: `input_ids`, `attention_mask` and `labels` (B, T).
            count: labels of the whole optimizer step over all processes; None: this batch's own.
        """
        tokens = labelled_tokens(inputs)
        found = divergences(model, self.teacher_model, tokens, self.beta)
        own = found.mask.sum()
        loss = gkd_loss(found.divergence, own if count is None else count)
        self.metrics.ratio("entropy", found.entropy.sum(), own)
        return Loss(loss, tokens)

    def _logits(self, model: nn.Module, inputs: Batch) -> dict[str, torch.Tensor]:
        wanted = ("input_ids", "attention_mask", "labels")
        return super()._logits(model, Batch({name: inputs[name] for name in wanted}))
