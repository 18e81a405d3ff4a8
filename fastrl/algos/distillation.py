"""Distillation: a student learns its teacher's next-token distributions on answers of its own.

On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes, arXiv 2306.13649.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from fastrl.algos.distillation_config import DistillationConfig
from fastrl.models.divergence import Divergences, divergences
from fastrl.train import online_setup, setup
from fastrl.train.batch import Batch
from fastrl.train.collecting import Collecting, Unscored
from fastrl.train.drawing import DrawnBy
from fastrl.train.experience import Experience
from fastrl.train.frozen import require_one_vocabulary
from fastrl.train.online import OnlineTrainer
from fastrl.train.teacher import refuse_soft_prompts
from fastrl.train.teacher import teacher_model as checked_teacher


class DistillationTrainer(OnlineTrainer):
    """On-policy distillation: the student answers, and every token is compared with the teacher.

    Each optimizer step draws one answer to each of its prompts and minimises the mean over their
    tokens, those of all processes and micro-batches, of the divergence (section 3 of the paper)

        beta = 0      KL(q || p)
        0 < beta < 1  beta KL(q || m) + (1 - beta) KL(p || m),  m = beta q + (1 - beta) p
        beta = 1      KL(p || q)

    p being the student's and q the teacher's next-token distribution at `args.temperature`. What
    tools put into an answer is not learnt.

    Args:
        model: the student: a name or folder, a transformers model, or a PEFT model.
        teacher_model: a name or folder, or a transformers model, with the student's vocabulary;
            None: the one that `args.teacher_model_name_or_path` names. It stays as it is.
        args: a `DistillationConfig`; None: defaults, and a folder named by the model.
        train_dataset: rows with `prompt`, a text or a conversation; other columns are not read.
        eval_dataset: the same, or a dict of several.
        processing_class: the tokenizer; None: the student's own.
        callbacks, optimizers: as in `transformers.Trainer`.
        quantization_config: for a student given by name.
        peft_config: train an adapter of this kind.
        tools: functions that the student may call.

    Raises:
        ValueError, TypeError: before training, naming the argument, row or column.
    """

    _name = "Distillation"
    _tag_names = ("fastrl", "distillation")
    _paper: ClassVar[dict[str, str]] = {
        "title": "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
        "id": "2306.13649",
    }
    _config = DistillationConfig
    args: DistillationConfig

    def __init__(
        self,
        model: str | nn.Module,
        teacher_model: str | nn.Module | None = None,
        args: DistillationConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: list[Callable[..., Any]] | None = None,
    ) -> None:
        args = self._config.of(args, setup.run_name(model, self._name))
        super().__init__(
            model,
            None,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            tools=tools,
            ref_model=checked_teacher(teacher_model, model, args),
        )

    def _start(self, reference: Any, *judged_by: Any) -> None:
        require_one_vocabulary(self.model, "teacher_model", reference)
        refuse_soft_prompts(model=self.model, teacher_model=reference)
        super()._start(reference, *judged_by)

    def _collector(self, reward_funcs: Any, tokenizers: Any, drawn_by: DrawnBy) -> Collecting:
        return Unscored(self, drawn_by)

    @property
    def teacher_model(self) -> nn.Module:
        """The teacher, as what wraps it for several processes."""
        teacher = self._reference.model
        assert teacher is not None
        return teacher

    def experience(self, answers: Experience, scores: torch.Tensor) -> Experience:
        """The answers themselves: the teacher is asked in the loss."""
        return answers

    def weights(
        self, answers: Experience, accumulation: int, slices: int
    ) -> dict[str, torch.Tensor]:
        """The mean over the tokens of an optimizer step; in evaluation over those of a batch."""
        tokens = torch.tensor(sum(answers.tokens), device=self.args.device)
        if self.model.training:  # gradients are averaged over processes
            tokens = answers.tensors["num_items_in_batch"] / self.accelerator.num_processes
        share = 1.0 / tokens.clamp(min=1.0 / self.accelerator.num_processes)
        return {"loss_weights": share.expand(len(answers))}

    def loss(self, inputs: Batch, scores: Divergences) -> torch.Tensor:
        """Σ_i w_i Σ_t D_it of the rows of one pass."""
        entropy, tokens = scores.entropy.sum(1), scores.mask.sum(1)
        self._slice_metrics.ratio("entropy", entropy, tokens, inputs["slices"])
        return (scores.divergence.sum(1) * inputs["loss_weights"]).sum()

    def scores_of(self, model: nn.Module, inputs: Batch, aux_loss: bool = False) -> Divergences:
        """How far student and teacher are apart at each token of the answers, (B, C)."""
        args = self.args
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        tokens = online_setup.spans_of(inputs, ids).tokens(ids)
        found = divergences(model, self.teacher_model, tokens, args.beta, args.temperature)
        return found.last(inputs["completion_ids"].shape[1])
