"""Log-probabilities, entropies and values of given tokens under a policy, without padding.

This is the door every trainer uses: `prepare_policy` once, then `logprobs` with whatever the
trainer calls (the bare model, or DDP, PEFT and value-head wrappers around it).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from fastrl.models import door, handshake, layout, noise, router, spans, trial
from fastrl.models.handshake import LanguageModel, Plan
from fastrl.ops._linear_tiles import STATISTICS
from fastrl.types import LogProbs, Tokens

# Without gradients nothing has to be kept, so long passes go through in pieces of at most this many
# tokens: small enough that their activations cost little memory, large enough to fill the device.
PACK_TOKENS = {"cpu": 2048, "cuda": 32768}


def prepare_policy(model: nn.Module) -> Plan:
    """Make a model ready for `logprobs`: install the door and find out what the model can do.

    Call it before the model is wrapped for several processes; a second call costs nothing. The
    model's parameters, gradients, mode and random state are left as they are.

    Args:
        model: a causal language model, bare or wrapped.

    Returns:
        how it will be scored; a warning states the reason if rows are not packed.

    Raises:
        TypeError: if no transformers model is inside.
        ValueError: for an encoder-decoder, or a model without a language-model head.
    """
    instance, soft_prompt = door.find(model)
    plan = handshake.standing(instance)
    if plan is not None:
        return plan
    if getattr(instance.config, "is_encoder_decoder", False):
        raise ValueError(
            f"model: {type(instance).__name__} is an encoder-decoder, whose log-probabilities "
            "depend on encoder inputs; call it with padded inputs instead"
        )
    if instance.get_output_embeddings() is None:
        raise ValueError(f"model: {type(instance).__name__} has no language-model head")
    plan = handshake.prepare(instance, LanguageModel())
    if soft_prompt or not plan.packed:
        reason = "a soft prompt precedes each row" if soft_prompt else plan.reason
        warnings.warn(f"{type(instance).__name__} is scored with padding: {reason}", stacklevel=2)
    if plan.head_reason is not None:
        warnings.warn(
            f"{type(instance).__name__} is scored from whole logits: {plan.head_reason}",
            stacklevel=2,
        )
    return plan


def counts_pads(model: nn.Module) -> bool:
    """Whether a model given a mask but no position_ids counts left padding as positions.

    True for GPT-2; False for rotary models and for those that derive positions from the mask (OPT).
    """
    return prepare_policy(model).counts_pads


def logprobs(
    model: nn.Module,
    tokens: Tokens,
    temperature: float = 1.0,
    stats: Sequence[str] = (),
    aux_loss: bool = False,
    fp32_head: bool = False,
) -> LogProbs:
    """Score the tokens of each span that `tokens.scored` names; no others reach the head.

    Args:
        model: what the trainer calls; the call goes through it, so its wrappers stay armed.
        tokens: (B, T) ids and their spans.
        temperature: logits are divided by it.
        stats: further results, those of `fastrl.ops.linear_token_logprobs`: "top1", "mean_logit",
            "log_sum_sq".
        aux_loss: also the load-balancing loss of a mixture of experts, over every token of every
            span, as transformers computes it for `output_router_logits=True`; of a model without
            a router it is None.
        fp32_head: compute the logits in fp32 under autocast and for 16-bit weights too; see
            `require_fp32_head`.

    Returns:
        (B, T - 1) frames; differentiable where gradients are enabled. `values` is None unless the
        model has a value head. Values are those of the hidden states the logits come from.

    Raises:
        ValueError, TypeError: for spans that do not fit, and as `prepare_policy`.
    """
    spans.check(tokens)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    _require_stats(stats)
    plan = prepare_policy(model)
    instance, soft_prompt = door.find(model)
    routed = aux_loss and router.present(instance)
    if soft_prompt:
        return _soft_prompt_logprobs(model, tokens, temperature, tuple(stats), routed)
    own_forward = routed and (plan.head is None or not router.from_gates(instance))
    if own_forward:
        places = layout.padded(tokens, plan.takes_positions, plan.counts_pads)
    else:
        places = laid(plan, instance, tokens, routed)
    head = None if own_forward else plan.head
    if head is not None and fp32_head:
        head = replace(head, fp32=True)
    request = door.Request(places.batches, temperature, head, stats=tuple(stats), aux_loss=routed)
    return _frames(tokens, places.frame, model(fastrl_request=request))


def laid(plan: Plan, model: PreTrainedModel, tokens: Tokens, routed: bool = False) -> layout.Layout:
    """The spans as the model is best fed them; `routed`: a router's loss asks for every token."""
    if not plan.packed:
        return layout.padded(tokens, plan.takes_positions, plan.counts_pads)
    limit = pass_limit(model, tokens.ids.device)
    share = plan.shares_prefix and not routed and not noise.active(model)
    trim = not routed and trims(plan, model)
    return layout.packed(tokens, limit, share, whole=routed, trim=trim)


def pass_limit(model: PreTrainedModel, device: torch.device) -> int | None:
    """Most tokens of a packed pass; None: all go through in one.

    Parameters spread over ranks are gathered at every pass, so all ranks make the same number.
    """
    if torch.is_grad_enabled() or trial.partitioned(model):
        return None
    return PACK_TOKENS.get(device.type, 8192)


def trims(plan: Plan, model: PreTrainedModel) -> bool:
    """Whether the last layer may leave out what no score depends on.

    It does where enough is left out, which ranks find differently, and takes another way then.
    """
    return plan.trims and not (torch.is_grad_enabled() and trial.joins_in_order(model))


def require_fp32_head(model: nn.Module) -> None:
    """Refuse a model whose logits are not made by a matrix that could be read in fp32.

    Raises:
        ValueError: naming the setting.
    """
    plan, (instance, soft_prompt) = prepare_policy(model), door.find(model)
    matrix = None if plan.head is None else door.head_matrix(instance.get_output_embeddings())
    if matrix is None or soft_prompt:
        raise ValueError(
            f"cast_lm_head_to_fp32: the head of {type(instance).__name__} is no plain matrix "
            "(an adapter, quantisation or a hook is on it, or the model makes its logits "
            "otherwise); leave cast_lm_head_to_fp32 out"
        )


def _require_stats(stats: Sequence[str]) -> None:
    for name in stats:
        if name not in STATISTICS:
            raise ValueError(f"stats has {name!r}; choose among {', '.join(STATISTICS)}")


class Frames:
    """Where (K,) results belong in (B, T - 1).

    Args:
        tokens: what was scored.
        frame: (K,) int64 places in the flattened result.
    """

    def __init__(self, tokens: Tokens, frame: torch.Tensor) -> None:
        self._shape = (tokens.ids.shape[0], tokens.ids.shape[1] - 1)
        self._frame = frame

    def spread(self, flat: torch.Tensor) -> torch.Tensor:
        """(B, T - 1), 0 where there is no result."""
        zeros = flat.new_zeros(self._shape[0] * self._shape[1])
        return zeros.index_copy(0, self._frame.to(flat.device), flat).view(self._shape)

    @property
    def mask(self) -> torch.Tensor:
        """(B, T - 1) bool, True where there is one."""
        size = self._shape[0] * self._shape[1]
        mask = torch.zeros(size, dtype=torch.bool, device=self._frame.device)
        return mask.index_fill_(0, self._frame, True).view(self._shape)


def _frames(tokens: Tokens, frame: torch.Tensor, answer: door.Answer) -> LogProbs:
    """Put (K,) results at their places in (B, T - 1)."""
    at = Frames(tokens, frame)
    return LogProbs(
        at.spread(answer.logp),
        at.spread(answer.entropy),
        None if answer.values is None else at.spread(answer.values),
        at.mask,
        {name: at.spread(table) for name, table in answer.stats.items()} or None,
        answer.aux_loss,
    )


def _soft_prompt_logprobs(
    model: nn.Module, tokens: Tokens, temperature: float, stats: tuple[str, ...], routed: bool
) -> LogProbs:
    """Plain call of a model that puts virtual tokens before each row, which lengthen its logits."""
    places = layout.padded(tokens, takes_positions=False)
    (batch,) = places.batches
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    output = model(**inputs, **({router.KEYWORD: True} if routed else {}))
    logits = output[0] if isinstance(output, tuple) else output.logits
    values = output[2] if isinstance(output, tuple) else None
    width = batch.inputs["input_ids"].shape[1]
    logits = logits[:, -width:].reshape(-1, logits.shape[-1]).index_select(0, batch.rows)
    scored = door.scores_of_logits(logits, batch.targets, temperature, stats)
    if values is not None:
        values = values[:, -width:].reshape(-1).index_select(0, batch.rows)
    aux_loss = output.aux_loss if routed else None
    answer = door.Answer(*scored, values=values, aux_loss=aux_loss)
    return _frames(tokens, places.frame, answer)
