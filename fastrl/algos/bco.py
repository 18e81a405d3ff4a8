"""Binary classifier optimization: learn from answers marked good or bad, as a classifier would.

Binary Classifier Optimization for Large Language Model Alignment, arXiv 2404.04656.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from fastrl.algos import bco_matching
from fastrl.algos.bco_config import BCOConfig
from fastrl.algos.bco_matching import PromptClassifier
from fastrl.data.collate_bco import DataCollatorForBCO
from fastrl.data.prepare_bco import prepare_bco
from fastrl.legacy.bco import BCO
from fastrl.legacy.binding import accepts_legacy
from fastrl.models.policy import logprobs
from fastrl.train.batch import Batch, masked_tokens
from fastrl.train.moments import RunningMoments
from fastrl.train.offline import Loss
from fastrl.train.preference import PreferenceTrainer
from fastrl.types import LogProbs

RUNNING = "running.json"  # in a checkpoint: δ and what it is a mean of
CLASSIFIER = "prompt_classifier.json"


def bco_loss(
    rewards: torch.Tensor,
    good: torch.Tensor,
    delta: torch.Tensor | float,
    bad_weight: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """-log σ(r - δ) of good answers and -w log σ(δ - r) of bad ones, mean (equations 10 and 14).

    Args:
        rewards: (B,) r = β (log π(y|x) - log π_ref(y|x)).
        good: (B,) bool.
        delta: δ, the mean of all rewards so far, without gradient.
        bad_weight: (B,) w, read where the answer is bad.

    Returns:
        a scalar.
    """
    shifted = rewards - delta
    losses = -logsigmoid(torch.where(good, shifted, -shifted))
    return torch.where(good, losses, bad_weight * losses).mean()


@accepts_legacy(BCO, BCOConfig)
class BCOTrainer(PreferenceTrainer):
    """BCO on answers marked good or bad, without computing padding.

    Args:
        model, ref_model, data_collator, eval_dataset, processing_class, callbacks, optimizers,
            peft_config, compute_metrics, quantization_config: as `PreferenceTrainer` takes them.
        args: a `BCOConfig`, or `TrainingArguments`.
        train_dataset: rows of `prompt`, `completion` and `label`, or pairs of answers.
        embedding_func: called with `input_ids` and `attention_mask` (B, T) of prompts, returns
            (B, D) embeddings. Bad answers then count by how likely their prompts are to have good
            ones (section 3.3), which is learnt from some prompts at the start.
        embedding_tokenizer: makes its tokens.

    Raises:
        ImportError: for an `embedding_func` without scikit-learn.
        ValueError, TypeError: before training, naming the argument, row or column.
    """

    _name = "BCO"
    _tag_names = ("fastrl", "bco")
    _paper: ClassVar[dict[str, str]] = {
        "title": "Binary Classifier Optimization for Large Language Model Alignment",
        "id": "2404.04656",
    }
    _config = BCOConfig

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        ref_model: PreTrainedModel | nn.Module | None = None,
        args: BCOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | Mapping[str, Any] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        embedding_func: Callable[..., torch.Tensor] | None = None,
        embedding_tokenizer: PreTrainedTokenizerBase | None = None,
        quantization_config: Any = None,
    ) -> None:
        bco_matching.check(embedding_func, embedding_tokenizer, train_dataset)
        self.embedding_func, self.embedding_tokenizer = embedding_func, embedding_tokenizer
        super().__init__(
            model,
            ref_model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            compute_metrics,
            callbacks,
            optimizers,
            quantization_config,
            peft_config,
        )
        self.running = RunningMoments(self.accelerator)
        self.clf: PromptClassifier | None = None
        if embedding_func is not None:
            size = self.args.prompt_sample_size
            self.clf = bco_matching.classifier(self, self._embedded, self.train_dataset, size)

    def _prepared(
        self, dataset: Any, tokenizer: PreTrainedTokenizerBase, args: Any, name: str
    ) -> Any:
        return prepare_bco(dataset, tokenizer, args, name, self.embedding_tokenizer)

    def _collator(self, tokenizer: PreTrainedTokenizerBase, args: BCOConfig) -> DataCollatorForBCO:
        embedding = self.embedding_tokenizer
        return DataCollatorForBCO(
            pad_token_id=tokenizer.pad_token_id,
            pad_to_multiple_of=args.pad_to_multiple_of,
            embedding_pad_token_id=0 if embedding is None else embedding.pad_token_id,
        )

    def _set_signature_columns_if_needed(self) -> None:
        answers = ["prompt_ids", "completion_ids", "label"]
        self._signature_columns = [*answers, "embedding_ids", "ref_logps"]

    @torch.no_grad()
    def _embedded(self, inputs: Batch) -> torch.Tensor:
        """(B, D) embeddings of the prompts."""
        assert self.embedding_func is not None
        names = ("input_ids", "attention_mask")
        found = self.embedding_func(**{name: inputs[f"embedding_{name}"] for name in names})
        return bco_matching.check_embeddings(found, len(inputs["embedding_input_ids"]))

    def _ref_columns(self, model: nn.Module, inputs: Batch) -> dict[str, torch.Tensor]:
        tokens = masked_tokens(inputs, "completion_mask")
        return {"ref_logps": self._reference.logprobs(model, tokens).logp.sum(1)}

    def loss(self, model: nn.Module, inputs: Batch, count: torch.Tensor | int | None) -> Loss:
        """The loss of one micro-batch, and its metrics; in training its rewards enter δ first.

        Args:
            model: what the trainer calls.
            inputs: `input_ids`, `attention_mask`, `completion_mask` (B, T), `label` (B,), and with
                an embedding `embedding_input_ids` and `embedding_attention_mask` (B, T').
            count: has no part in it; the loss is a mean over rows.
        """
        # The reference runs first: its activations and the policy's never live together.
        ref = inputs if "ref_logps" in inputs else self._ref_columns(model, inputs)
        weight: torch.Tensor | float = 1.0
        if self.clf is not None:
            args = self.args
            bounds = (args.min_density_ratio, args.max_density_ratio)
            weight = self.clf.density_ratio(self._embedded(inputs), *bounds)
        tokens = masked_tokens(inputs, "completion_mask")
        with_router = self.router_aux_loss_coef > 0
        scores = logprobs(model, tokens, stats=("mean_logit",), aux_loss=with_router)
        logp = scores.logp.sum(1)
        rewards = self.args.beta * (logp - ref["ref_logps"])
        if self.model.training:
            self.running.update(rewards)
        delta = self.running.mean.to(rewards)
        good = inputs["label"].bool()
        loss = bco_loss(rewards, good, delta, weight)
        self.metrics.mean("delta", delta)
        self._measure(scores, good, logp, rewards)
        return Loss(loss, tokens, scores.aux_loss)

    def _measure(
        self, scores: LogProbs, good: torch.Tensor, logp: torch.Tensor, rewards: torch.Tensor
    ) -> None:
        """Means over all rows of one kind since the last log."""
        logits = scores.stats["mean_logit"]
        for side, rows in (("chosen", good), ("rejected", ~good)):
            of_side = scores.mask & rows[:, None]
            self.metrics.pool(f"rewards/{side}", (rewards * rows).sum(), rows.sum())
            self.metrics.pool(f"logps/{side}", (logp * rows).sum(), rows.sum())
            self.metrics.pool(f"logits/{side}", (logits * of_side).sum(), of_side.sum())

    def _found(self) -> dict[str, Any]:
        found = super()._found()
        if {"rewards/chosen", "rewards/rejected"} <= found.keys():
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        return found

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self.running.save_to_json(Path(output_dir) / RUNNING)
        if self.clf is not None and self.accelerator.is_main_process:
            self.clf.save(Path(output_dir) / CLASSIFIER)

    def _own_files(self, checkpoint: str) -> list[Path]:
        """The checkpoint's files that are BCO's own. Raises ValueError if one is not there."""
        names = (RUNNING, CLASSIFIER)[: 1 if self.clf is None else 2]
        files = [Path(checkpoint) / name for name in names]
        for file in files:
            if not file.exists():
                raise ValueError(
                    f"resume_from_checkpoint: {file} is missing, without which the run would not "
                    f"go on as it began; start afresh from its weights with model={checkpoint!r}"
                )
        return files

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._own_files(resume_from_checkpoint)  # before the weights are another run's
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            files = self._own_files(checkpoint)
            self.running = RunningMoments.load_from_json(self.accelerator, files[0])
            if self.clf is not None:
                self.clf = PromptClassifier.load(files[1])
        super()._load_optimizer_and_scheduler(checkpoint)
