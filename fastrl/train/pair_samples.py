"""`get_batch_samples`: TRL's of 0.7 to 0.24 draws answers, transformers' of today draws batches."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn


class PairSamples:
    """Both meanings under the one name, told apart by the first argument.

    A subclass that overrides it in the old form, `get_batch_samples(self, model, batch)`, is called
    where a model is given, and transformers' loop still gets its batches.
    """

    args: Any
    accelerator: Any
    processing_class: Any
    _as_reference: Callable[[], AbstractContextManager[nn.Module]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls).get("get_batch_samples")
        if own is None or list(inspect.signature(own).parameters)[1:3] != ["model", "batch"]:
            return

        @functools.wraps(own)
        def get_batch_samples(self: Any, first: Any, *rest: Any, **keywords: Any) -> Any:
            if isinstance(first, nn.Module):
                return own(self, first, *rest, **keywords)
            above: Any = super(cls, self)
            return above.get_batch_samples(first, *rest, **keywords)

        cls.get_batch_samples = get_batch_samples  # type: ignore[assignment]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: Any, device: Any = None) -> Any:
        """The next batches of an epoch; or answers of the policy and of the reference to prompts.

        Args:
            epoch_iterator: yields batches; or the policy.
            num_batches: how many; or a batch with `prompt_input_ids` and `prompt_attention_mask`
                (B, T), and `reference_output` (B, T') where the reference has answered already.
            device: where the labels are counted.

        Returns:
            (the batches, the number of their labels); or (B texts of the policy, B texts of the
            reference), prompts in front, without special tokens.
        """
        if not isinstance(epoch_iterator, nn.Module):
            plain: Any = super()
            return plain.get_batch_samples(epoch_iterator, num_batches, device)
        batch: Mapping[str, torch.Tensor] = num_batches
        policy = self._answers(self.accelerator.unwrap_model(epoch_iterator), batch)
        if "reference_output" in batch:
            ids = batch["reference_output"]
            return policy, self.processing_class.batch_decode(ids, skip_special_tokens=True)
        with self._as_reference() as reference:
            return policy, self._answers(reference, batch)

    @torch.no_grad()
    def _answers(self, model: Any, batch: Mapping[str, torch.Tensor]) -> list[str]:
        tokenizer = self.processing_class
        ids = model.generate(
            input_ids=batch["prompt_input_ids"],
            attention_mask=batch["prompt_attention_mask"],
            max_length=self.args.max_length,
            do_sample=True,
            pad_token_id=tokenizer.pad_token_id,
        )
        return tokenizer.batch_decode(ids, skip_special_tokens=True)
