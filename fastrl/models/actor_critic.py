"""A policy and the model that values its states: two models, trained as one module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fastrl.models import door, layout, noise, spans
from fastrl.models.policy import logprobs, pass_limit, trims
from fastrl.models.pooled import Request, prepare_rewards
from fastrl.models.spans import Places
from fastrl.types import Tokens


@dataclass(frozen=True)
class Responses:
    """Prompts with their responses, and the (B, R) frames an algorithm sees them in.

    Column j of a frame speaks of response token j, or of the state before it. A response of L
    tokens in a frame of R > L columns has one more state, the one after its last token, in
    column L.
    """

    ids: torch.Tensor  # (B, T) int64: prompt and response from column 0 on, then padding
    prompts: list[int]  # B: tokens of each prompt (>= 1)
    lengths: list[int]  # B: tokens of each response (<= R)
    width: int  # R

    @staticmethod
    def of(
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        width: int,
        device: torch.device,
    ) -> Responses:
        """The token ids of B prompts and responses, none of these longer than `width`."""
        before, lengths = [len(ids) for ids in prompts], [len(ids) for ids in responses]
        table = np.zeros((len(before), max(before) + width), dtype=np.int64)
        for row, prompt, response in zip(table, prompts, responses, strict=True):
            row[: len(prompt) + len(response)] = [*prompt, *response]
        return Responses(torch.from_numpy(table).to(device), before, lengths, width)

    def rows(self, rows: Sequence[int]) -> Responses:
        """Some of the rows, in frames as wide as before."""
        return replace(
            self,
            ids=self.ids[torch.as_tensor(rows, device=self.ids.device)],
            prompts=[self.prompts[i] for i in rows],
            lengths=[self.lengths[i] for i in rows],
        )

    def _columns_below(self, counts: Sequence[int]) -> torch.Tensor:
        column = torch.arange(self.width, device=self.ids.device)
        return column < torch.tensor(counts, device=self.ids.device)[:, None]

    @property
    def mask(self) -> torch.Tensor:
        """(B, R) bool, True on response tokens."""
        return self._columns_below(self.lengths)

    @property
    def states(self) -> list[int]:
        """B: states that are valued, one a token and, where the frame has room, that after it."""
        return [min(length + 1, self.width) for length in self.lengths]

    @property
    def state_mask(self) -> torch.Tensor:
        """(B, R) bool, True on the states that are valued."""
        return self._columns_below(self.states)

    @property
    def ends(self) -> list[int]:
        """B: the last token of prompt and response, counted from the row's first."""
        return [p + n - 1 for p, n in zip(self.prompts, self.lengths, strict=True)]

    def tokens(self) -> Tokens:
        """The rows for a packed pass, their responses scored."""
        whole = [end + 1 for end in self.ends]
        return Tokens(self.ids, [0] * len(whole), whole, self.prompts)

    def frame(self, scores: torch.Tensor) -> torch.Tensor:
        """(B, R) of what a pass says of all tokens, (B, T - 1); 0 where no token is."""
        first = torch.tensor(self.prompts, device=scores.device)[:, None] - 1
        column = first + torch.arange(self.width, device=scores.device)
        return scores.gather(1, column) * self.mask

    def state_frame(self, found: torch.Tensor) -> torch.Tensor:
        """(B, R) of one number for each valued state, row by row; 0 elsewhere."""
        counts = np.asarray(self.states)
        at = torch.from_numpy(spans.runs(np.arange(len(counts)) * self.width, counts))
        flat = found.new_zeros(len(counts) * self.width)
        return flat.index_copy(0, at.to(found.device), found).view(len(counts), self.width)


def require_token_values(model: nn.Module) -> None:
    """Make a model ready for `values`.

    Raises:
        ValueError, TypeError: for a model that gives no value to single tokens.
    """
    plan = prepare_rewards(model)
    if plan.head is None:
        name = type(door.find(model)[0]).__name__
        raise ValueError(
            f"value_model: {name} is more than `score` on its backbone's hidden states "
            f"({plan.head_reason}), so single tokens have no value"
        )


def values(
    model: nn.Module, tokens: Tokens, first: Sequence[int], count: Sequence[int]
) -> torch.Tensor:
    """What a sequence-classification model with one label says at several tokens of each span.

    Args:
        model: what the trainer calls; the call goes through it, so its wrappers stay armed.
        tokens: (B, T) ids and their spans; `tokens.scored` is not asked for.
        first, count: S: which tokens, counted within the span: `count` of them from `first` on.

    Returns:
        (sum of count,) fp32, span by span; differentiable where gradients are enabled.

    Raises:
        ValueError, TypeError: for tokens that a span lacks, and as `require_token_values`.
    """
    spans.check(tokens)
    require_token_values(model)
    chosen = _places(tokens, np.asarray(first), np.asarray(count))
    instance, _ = door.find(model)
    plan = prepare_rewards(model)
    if plan.packed:
        limit = pass_limit(instance, tokens.ids.device)
        share = plan.shares_prefix and not noise.active(instance)
        trim = trims(plan, instance)
        places = layout.packed(tokens, limit, share, trim=trim, spans=chosen)
    else:
        places = layout.padded(tokens, plan.takes_positions, plan.counts_pads, spans=chosen)
    found = model(fastrl_request=Request(places.batches, own_forward=False))
    order = np.argsort(places.spans, kind="stable")
    if (order == np.arange(len(order))).all():
        return found
    return found.index_select(0, torch.from_numpy(order).to(found.device))


def _places(tokens: Tokens, first: np.ndarray, count: np.ndarray) -> Places:
    length = np.asarray(tokens.lengths)
    outside = np.flatnonzero((first < 0) | (count < 0) | (first + count > length))
    if len(outside):
        span = outside[0]
        raise ValueError(
            f"first and count name {count[span]} tokens from {first[span]} on, but span {span} "
            f"has {length[span]} tokens"
        )
    plain = spans.pooled_places(tokens, [n - 1 for n in tokens.lengths])
    return replace(plain, count=count, place=spans.runs(first, count))


class PolicyAndValue(nn.Module):
    """Both models behind one forward, so that whatever wraps the module sees a single call.

    Args:
        policy: a causal language model, bare or with adapters.
        value_model: a sequence-classification model with one label.
    """

    def __init__(self, policy: nn.Module, value_model: nn.Module) -> None:
        super().__init__()
        self.policy = policy
        self.value_model = value_model

    def forward(
        self,
        responses: Responses | None = None,
        temperature: float = 1.0,
        fastrl_request: Any = None,
    ) -> Any:
        """Score responses and value their states.

        Args:
            responses: B rows.
            temperature: logits are divided by it.
            fastrl_request: private to `fastrl.models`; the policy answers.

        Returns:
            log-probabilities and entropies of the response tokens, and values of the states, each
            (B, R) fp32 and 0 where the frame has none.
        """
        if fastrl_request is not None:
            return self.policy(fastrl_request=fastrl_request)
        assert responses is not None
        tokens = responses.tokens()
        found = logprobs(self.policy, tokens, temperature)
        before = [prompt - 1 for prompt in responses.prompts]
        valued = values(self.value_model, tokens, before, responses.states)
        return (
            responses.frame(found.logp),
            responses.frame(found.entropy),
            responses.state_frame(valued),
        )

    def generate(self, *args: Any, **keywords: Any) -> Any:
        """`generate` of the policy."""
        policy: Any = self.policy
        return policy.generate(*args, **keywords)

    @property
    def config(self) -> Any:
        """The policy's."""
        return self.policy.config

    @property
    def generation_config(self) -> Any:
        """The policy's."""
        return self.policy.generation_config

    @property
    def model_tags(self) -> Any:
        """The policy's."""
        return getattr(self.policy, "model_tags", None)

    def add_model_tags(self, tags: list[str]) -> None:
        """Tag the policy."""
        policy: Any = self.policy
        policy.add_model_tags(tags)

    def get_input_embeddings(self) -> nn.Module:
        """The policy's."""
        policy: Any = self.policy
        return policy.get_input_embeddings()

    def gradient_checkpointing_enable(self, **keywords: Any) -> None:
        """Recompute both models' activations in the backward pass."""
        for model in (self.policy, self.value_model):
            enable: Any = model.gradient_checkpointing_enable
            enable(**keywords)

    def activation_checkpointing_enable(self, **keywords: Any) -> None:
        """The same by the name that newer releases of transformers gave it."""
        for model in (self.policy, self.value_model):
            enable: Any = model.activation_checkpointing_enable
            enable(**keywords)
