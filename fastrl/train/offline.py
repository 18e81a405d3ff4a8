"""The step that trainers on fixed datasets share: SFT, DPO, Reward and their relatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastrl.train.batch import Batch
from fastrl.train.trainer import Trainer
from fastrl.types import Tokens


@dataclass(frozen=True)
class Loss:
    """What an algorithm finds in a micro-batch.

    Attributes:
        value: the loss, a scalar.
        tokens: those the model computed.
        aux_loss: the router's loss, a scalar; None: there is no router, or it has no weight.
        outputs: gives what `compute_metrics` sees, {"logits", "labels"}; None: all logits.
    """

    value: torch.Tensor
    tokens: Tokens
    aux_loss: torch.Tensor | None = None
    outputs: Callable[[], dict[str, torch.Tensor]] | None = None


class OfflineTrainer(Trainer):
    """A `Trainer` whose subclass says what the loss of a micro-batch is (`loss`)."""

    router_aux_loss_coef: float = 0.0

    def loss(self, model: nn.Module, inputs: Batch, count: torch.Tensor | int | None) -> Loss:
        """The loss of one micro-batch; puts the algorithm's metrics to `self.metrics`.

        Args:
            model: what the trainer calls.
            inputs: what the collator made.
            count: labels of the whole optimizer step over all processes, by which an algorithm that
                `counts_labels` divides; None: this batch's own.
        """
        raise NotImplementedError

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of one micro-batch as it is trained, and its metrics.

        Args:
            model: what the trainer calls.
            inputs: see `loss`.
            return_outputs: also return {"logits", "labels"}, for `compute_metrics`.
            num_items_in_batch: labels of the whole optimizer step over all processes; None: this
                batch's own. Has no part in a loss that is a mean over rows.

        Returns:
            the loss, a scalar; or (loss, outputs).
        """
        count = num_items_in_batch if self.counts_labels else None
        found = self.loss(model, inputs, count)
        loss = found.value
        if count is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP averages over them
        if found.aux_loss is not None:
            steps = 1 if count is None else self.current_gradient_accumulation_steps
            loss = loss + self.router_aux_loss_coef * found.aux_loss / steps
            self.metrics.mean("aux_loss", found.aux_loss)
        self.count_tokens(sum(found.tokens.lengths))
        loss = self.checked(loss)
        if not return_outputs:
            return loss
        return loss, self._logits(model, inputs) if found.outputs is None else found.outputs()

    def _logits(self, model: nn.Module, inputs: Batch) -> dict[str, torch.Tensor]:
        """{"logits": (B, T, V), "labels": (B, T)} by a plain forward of the padded rows."""
        raise NotImplementedError
