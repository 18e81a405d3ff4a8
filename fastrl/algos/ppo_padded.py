"""TRL's padded contract of classic PPO: every position scored, logits returned, overridable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from fastrl.algos.ppo_batch import PPOBatch, PPOExperience, decoder_mask, response_mask
from fastrl.algos.ppo_config import PPOConfig
from fastrl.ops.token_logprobs import token_logprobs
from fastrl.train.classic import ClassicTrainer
from fastrl.train.device_cache import emptied_device_cache
from fastrl.train.statistics import Masked

Rows = list[torch.Tensor]
Losses = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]  # policy, value, statistics


def with_true_positions(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs and position ids (B, T) that count from each row's first token."""
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return {**inputs, "position_ids": positions}


def padded_pass(
    model: Any, inputs: dict[str, torch.Tensor], chunk: int, return_logits: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Run a value-head model over padded rows, `chunk` rows at a time.

    Returns:
        log-probability of each next token (B, T - 1), logits (B, T - 1, V) or None, and values
        (B, T - 1); for an encoder–decoder T is the decoder's length.
    """
    ids = inputs.get("decoder_input_ids", inputs["input_ids"])
    logps, all_logits, all_values = [], [], []
    for start in range(0, len(ids), chunk):
        part = {k: v[start : start + chunk] for k, v in inputs.items()}
        logits, _, values = model(**part)
        logp, _ = token_logprobs(logits[:, :-1], ids[start : start + chunk, 1:])
        logps.append(logp)
        all_values.append(values[:, :-1])
        if return_logits:
            all_logits.append(logits[:, :-1])
    return (
        torch.cat(logps),
        torch.cat(all_logits) if return_logits else None,
        torch.cat(all_values),
    )


class PaddedPPO(ClassicTrainer):
    """A step's rows padded as TRL pads them, and the methods its users call and override."""

    config: PPOConfig
    # PPOTrainer's own
    loss: Callable[..., Losses]
    _descend_along: Callable[..., dict[str, torch.Tensor]]
    _statistics_over: Accelerator | None

    def _make_batch(self, queries: Rows, responses: Rows, response_masks: Rows | None) -> PPOBatch:
        inputs = self._padded_across_processes(self.prepare_model_inputs(queries, responses))
        return PPOBatch(
            queries=queries,
            responses=responses,
            model_inputs=inputs,
            left_padded=self.tokenizer.padding_side == "left",
            mask=self._mask(queries, responses, inputs, response_masks),
            pads_count=self._pads_count,
        )

    def _mask(
        self, queries: Rows, responses: Rows, inputs: dict[str, Any], response_masks: Rows | None
    ) -> torch.Tensor:
        """(B, T - 1) int64, 1 in the columns that speak of response tokens that count."""
        if self.is_encoder_decoder:
            return decoder_mask(inputs["decoder_attention_mask"], response_masks)
        left = self.tokenizer.padding_side == "left"
        return response_mask(queries, responses, inputs["attention_mask"], left, response_masks)

    def batched_forward_pass(
        self,
        model: Any,
        queries: Rows,
        responses: Rows,
        model_inputs: dict[str, torch.Tensor],
        return_logits: bool = False,
        response_masks: Rows | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """Padded forward passes in chunks of `mini_batch_size` rows, every position scored.

        Returns:
            log-probabilities (B, T - 1), logits (B, T - 1, V) or None, values (B, T - 1) and the
            int64 mask (B, T - 1) of response tokens.
        """
        with emptied_device_cache(self.config.optimize_device_cache):
            size = self.config.mini_batch_size
            model.eval()
            if self.config.position_ids and not self.is_encoder_decoder:
                model_inputs = with_true_positions(model_inputs)
            logp, logits, values = padded_pass(model, model_inputs, size, return_logits)
            mask = self._mask(queries, responses, model_inputs, response_masks)
            return logp, logits, values, mask

    def _train_padded(
        self, batch: PPOBatch, experience: PPOExperience, rows: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        logp, logits, vpreds, _ = self.batched_forward_pass(
            self.model,
            [batch.queries[i] for i in rows],
            [batch.responses[i] for i in rows],
            batch.inputs(rows),
            return_logits=True,
        )
        assert logits is not None  # return_logits
        old = experience.rows(rows)
        return self.train_minibatch(logprobs=logp, logits=logits, vpreds=vpreds, **old)

    def train_minibatch(
        self,
        old_logprobs: torch.Tensor,
        values: torch.Tensor,
        logprobs: torch.Tensor,
        logits: torch.Tensor,
        vpreds: torch.Tensor,
        mask: torch.Tensor,
        advantages: torch.Tensor,
        returns: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Take one minibatch's step; all arguments (B, T - 1) but logits (B, T - 1, V)."""
        with emptied_device_cache(self.config.optimize_device_cache):
            losses = self.loss(
                old_logprobs, values, logits, vpreds, logprobs, mask, advantages, returns
            )
            return self._descend_along(Masked(mask, self._statistics_over), losses)
