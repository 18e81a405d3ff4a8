"""What trainers on pairs of answers without a reference share: ORPO and CPO."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from fastrl.data.collate_pairs import SIDES, DataCollatorForPairs
from fastrl.data.prepare_pairs import prepare_pairs
from fastrl.models.policy import logprobs
from fastrl.train import setup
from fastrl.train.answers import AnswerTrainer
from fastrl.train.batch import IGNORED, Batch, masked_tokens
from fastrl.train.offline import Loss
from fastrl.types import LogProbs

# Column of a side -> what its rows are padded with behind; the model sees none of it.
_COLUMNS = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}


@dataclass(frozen=True)
class Pairs:
    """What the policy says of B pairs; every tensor fp32."""

    chosen: torch.Tensor  # (B,) log-probability of the answer
    rejected: torch.Tensor  # (B,)
    chosen_length: torch.Tensor  # (B,) tokens of the answer
    rejected_length: torch.Tensor  # (B,)
    chosen_nll: torch.Tensor  # scalar: mean over all scored tokens of the chosen rows

    @property
    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) each: log-probability per token of the chosen and of the rejected answer."""
        return self.chosen / self.chosen_length, self.rejected / self.rejected_length


def stacked(inputs: Mapping[str, Any], scores_prompt: bool) -> Batch:
    """Chosen rows and below them the rejected ones, of one width.

    Args:
        inputs: for `chosen` and `rejected`, `_input_ids`, `_attention_mask` and `_labels` (B, T).
        scores_prompt: whether all tokens of the chosen rows are scored.

    Returns:
        `input_ids`, `attention_mask`, `labels` and `scored` (2B, T'), and the spans if they fit.

    Raises:
        ValueError: a column is missing.
    """
    missing = [f"{s}_{c}" for s in SIDES for c in _COLUMNS if f"{s}_{c}" not in inputs]
    if missing:
        raise ValueError(f"data_collator: its batches have no {missing[0]}, but {sorted(inputs)}")
    width = max(inputs[f"{side}_input_ids"].shape[1] for side in SIDES)
    rows = {}
    for name, filling in _COLUMNS.items():
        sides = [inputs[f"{side}_{name}"] for side in SIDES]
        rows[name] = torch.cat([pad(s, (0, width - s.shape[1]), value=filling) for s in sides])
    rows["scored"] = rows["labels"] != IGNORED
    if scores_prompt:
        count = len(inputs["chosen_input_ids"])
        rows["scored"][:count] = rows["attention_mask"][:count].bool()
    whole = Batch(rows)
    whole.spans = inputs.spans if isinstance(inputs, Batch) else None
    return whole


def chosen_model(model: Any, model_init: Callable[[], Any] | None) -> Any:
    """The model that is given, or made by `model_init`, whose one argument, if any, is None.

    Raises:
        ValueError: both are given.
    """
    if model_init is None:
        return model
    if model is not None:
        raise ValueError("model and model_init are both given; leave one out")
    stated = inspect.signature(model_init).parameters.values()
    required = [p for p in stated if p.default is p.empty and p.kind <= p.POSITIONAL_OR_KEYWORD]
    return model_init(*[None] * len(required))  # type: ignore[call-arg]


class ReferenceFreeTrainer(AnswerTrainer):
    """A `Trainer` on pairs of answers, each pair's prompt computed once.

    A subclass has its `_config`, says what its NLL covers (`_scores_prompt`), and what is minimised
    (`pair_loss`).

    Args:
        model: a name or folder, a transformers model, or a PEFT model.
        args: the trainer's config or `TrainingArguments`; None: defaults, and a folder named by
            the model.
        data_collator: makes batches of prepared rows; None: ours.
        train_dataset: rows with `chosen` and `rejected`, and `prompt` or not.
        eval_dataset: the same, or a dict of several.
        processing_class: the tokenizer; None: the model's own.
        model_init: makes the model, in its place.
        callbacks, optimizers: as in `transformers.Trainer`.
        preprocess_logits_for_metrics, compute_metrics: as there; what they see of a batch is the
            (2,) mean logits of its chosen and of its rejected answers.
        peft_config: train an adapter of this kind.
        quantization_config: for a model given by name.

    Raises:
        ValueError, TypeError: before training, naming the argument, row or column.
    """

    _scores_prompt: ClassVar[bool] = False
    _prepare = staticmethod(prepare_pairs)

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module | None = None,
        args: Any = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | Mapping[str, Any] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        model_init: Callable[[], PreTrainedModel] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: Callable[..., torch.Tensor] | None = None,
        peft_config: Any = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        quantization_config: Any = None,
    ) -> None:
        args = self._settled(model, args, train_dataset, data_collator)
        model, tokenizer = self._policy(
            chosen_model(model, model_init),
            args,
            processing_class,
            quantization_config,
            peft_config,
        )
        self.router_aux_loss_coef = self._router_coefficient(model)
        if args.disable_dropout:
            setup.disable_dropout(model)
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
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )

    def _router_coefficient(self, model: nn.Module) -> float:
        """Weight of the router's loss: the model's own, where the model is set to return it."""
        config = model.config.get_text_config()
        asked = getattr(config, "output_router_logits", False)
        return setup.router_aux_loss_coef(model, None) if asked else 0.0

    def _collator(self, tokenizer: PreTrainedTokenizerBase, args: Any) -> DataCollatorForPairs:
        given = args.padding_value
        return DataCollatorForPairs(
            pad_token_id=tokenizer.pad_token_id if given is None else given,
            scores_prompt=self._scores_prompt,
            pad_to_multiple_of=args.pad_to_multiple_of,
        )

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [f"{side}_{name}" for side in SIDES for name in _COLUMNS]

    def pair_loss(self, pairs: Pairs) -> torch.Tensor:
        """The loss of B pairs, a scalar; puts the algorithm's metrics to `self.metrics`."""
        raise NotImplementedError

    def loss(self, model: nn.Module, inputs: Batch, count: torch.Tensor | int | None) -> Loss:
        """The loss of one micro-batch, and its metrics.

        Args:
            model: what the trainer calls.
            inputs: for `chosen` and `rejected`, `_input_ids`, `_attention_mask` and `_labels`
                (B, T), labels -100 outside the answer.
            count: has no part in it; the loss is a mean over pairs.

        `compute_metrics` sees as logits the (2,) means over chosen and over rejected answers.
        """
        whole = stacked(inputs, self._scores_prompt)
        tokens = masked_tokens(whole, "scored")
        with_router = self.router_aux_loss_coef > 0
        scores = logprobs(model, tokens, stats=("mean_logit",), aux_loss=with_router)
        answers = whole["labels"][:, 1:] != IGNORED
        loss = self.pair_loss(self._pairs(scores, answers))
        logits = self._mean_logits(scores.stats["mean_logit"], answers)
        outputs = {"logits": logits, "labels": torch.zeros_like(logits)}
        return Loss(loss, tokens, scores.aux_loss, lambda: outputs)

    def _pairs(self, scores: LogProbs, answers: torch.Tensor) -> Pairs:
        """From (2B, T - 1) frames and the bool mask of the answers."""
        logp, length = (scores.logp * answers).sum(1), answers.sum(1)
        nll = -scores.logp.chunk(2)[0].sum() / scores.mask.chunk(2)[0].sum()
        return Pairs(*logp.chunk(2), *length.chunk(2), chosen_nll=nll)

    def _mean_logits(self, logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        """(2,) means over the chosen and over the rejected answers, put to the metrics."""
        sums = torch.stack([part.sum() for part in (logits * answers).chunk(2)])
        counts = torch.stack([part.sum() for part in answers.chunk(2)])
        for side, total, count in zip(SIDES, sums, counts, strict=True):
            self.metrics.ratio(f"logits/{side}", total, count)
        return sums / counts

    def measure(
        self,
        rewards: tuple[torch.Tensor, torch.Tensor],
        logps: tuple[torch.Tensor, torch.Tensor],
        nll: torch.Tensor,
    ) -> None:
        """Metrics of both algorithms: (B,) of the chosen and the rejected answers, and the NLL."""
        chosen, rejected = rewards
        found = {
            "accuracies": chosen > rejected,
            "chosen": chosen,
            "margins": chosen - rejected,
            "rejected": rejected,
        }
        for name, values in found.items():
            self.metrics.mean(f"rewards/{name}", values)
        for side, values in zip(SIDES, logps, strict=True):
            self.metrics.mean(f"logps/{side}", values)
        self.metrics.mean("nll_loss", nll)
