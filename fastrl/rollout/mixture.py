"""Answers of two models at once: each token from their geometric mixture.

Nash Learning from Human Feedback, arXiv 2312.00886, section 7: π^(1-α) π_ref^α, normalised at every
token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.generation import GenerationMixin

from fastrl.models import door
from fastrl.models.attention import Attends
from fastrl.rollout.completion import Completion, Request
from fastrl.rollout.fallback import Fallback
from fastrl.rollout.plan import Plan
from fastrl.rollout.serving import Served, served, serving

Aside = Callable[[], AbstractContextManager[Any]]


def mixed(own: torch.Tensor, other: torch.Tensor, coefficient: float) -> torch.Tensor:
    """log softmax((1 - α) own + α other) in fp32.

    Args:
        own, other: (…, V) logits of the policy and of the reference.
        coefficient: α; at 0 and 1 one of the two has no part in it, whatever it holds.
    """
    parts = [(1.0 - coefficient, own), (coefficient, other)]
    logits = torch.stack([share * of.float() for share, of in parts if share]).sum(0)
    return torch.log_softmax(logits, dim=-1)


@dataclass(frozen=True)
class ServedMixture(Served):
    """Two models that the engine runs as one.

    The layers of the second come behind those of the first wherever keys and values are kept, so
    the engine's slots hold both.
    """

    reference: Served
    coefficient: float
    aside: Aside  # what each pass of the reference goes under: its adapter out of the way

    def logits(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        attends: Attends,
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(K, V) fp32 log-probabilities of the mixture after the tokens at `places`, or all."""
        own = super().logits(ids, positions, attends, places)
        with self.aside():
            other = self.reference.logits(ids, positions, attends, places)
        return mixed(own, other, self.coefficient)


@dataclass(frozen=True)
class MixturePlan(Plan):
    """A policy, what it is mixed with, and the settings of the answers.

    Attributes:
        reference: the other model; the policy itself where `aside` makes it another one.
        coefficient: α, the reference's share, from 0 to 1.
        aside: entered around every pass of the reference.
    """

    reference: nn.Module
    coefficient: float
    aside: Aside = nullcontext

    @property
    def _one(self) -> bool:
        return door.find(self.reference)[0] is door.find(self.model)[0]

    def served(self) -> Served | str:
        """The two as the engine runs them, or why it cannot."""
        own = super().served()
        other = own if self._one else served(self.reference)
        if isinstance(own, str):
            return own
        if isinstance(other, str):
            return f"of its reference, {other}"
        whole = {**vars(own), "partitioned": own.partitioned or other.partitioned}
        return ServedMixture(
            **whole, reference=other, coefficient=self.coefficient, aside=self.aside
        )

    def by_engine(
        self, served: Served, requests: Sequence[Request], max_rows: int | None = None
    ) -> list[tuple[Completion, ...]]:
        """The engine's answers."""
        with ExitStack() as stack:
            if isinstance(served, ServedMixture) and not self._one:
                stack.enter_context(serving(self.reference, served.reference))
            return super().by_engine(served, requests, max_rows)

    def _fallback(self) -> Fallback:
        pair = GeometricMixtureWrapper(
            door.find(self.model)[0],
            _SteppedAside(door.find(self.reference)[0], self.aside),
            self.config,
            self.coefficient,
            door.find(self.model)[0].device,
        )
        return _MixtureFallback(**vars(super()._fallback()), pair=pair)


@dataclass(frozen=True)
class _SteppedAside:
    """A model that is called with something out of its way."""

    model: nn.Module
    aside: Aside

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.aside():
            return self.model(*args, **kwargs)


@dataclass(frozen=True)
class _MixtureFallback(Fallback):
    """Whole rows through both models for every token."""

    pair: GeometricMixtureWrapper

    def _speaker(self) -> Any:
        return self.pair

    def _scored(
        self, instance: Any, prompts: list[tuple[int, ...]], answers: list[list[int]]
    ) -> Sequence[tuple[float, ...] | None]:
        return [None] * len(answers)  # what re-scoring gives is the policy's


class GeometricMixtureWrapper(GenerationMixin):
    """Transformers' `generate` on the geometric mixture of two models.

    It keeps no keys and values: every token takes whole rows through both models. `NashMDTrainer`
    draws from the same mixture by the rollout engine, which keeps both models'.

    Args:
        model: the policy, whose config and inputs it has.
        ref_model: the model it is mixed with, called alike.
        generation_config: how tokens are chosen, unless `generate` is told otherwise.
        mixture_coef: α, the share of `ref_model`.
        device: where ids are; None: the policy's.

    Raises:
        ValueError: for a share outside 0 to 1.
    """

    main_input_name = "input_ids"
    _is_stateful = False
    _supports_cache_class = False
    _supports_static_cache = False

    def __init__(
        self,
        model: Any,
        ref_model: Any,
        generation_config: GenerationConfig,
        mixture_coef: float = 0.5,
        device: torch.device | None = None,
    ) -> None:
        if not 0 <= mixture_coef <= 1:
            raise ValueError(f"mixture_coef must be from 0 to 1, got {mixture_coef}")
        self.model = model
        self.ref_model = ref_model
        self.config = model.config
        self.generation_config = generation_config
        self.mixture_coef = mixture_coef
        self.device = model.device if device is None else device
        self._is_stateful = getattr(model, "_is_stateful", False)

    def __getattr__(self, name: str) -> Any:
        # What `generate` asks of a model differs between releases of transformers.
        if name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `forward`."""
        return self.forward(*args, **kwargs)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The policy's output with the mixture's logits: (B, T, V) fp32 log-probabilities."""
        output = self.model(*args, **kwargs)
        other = self.ref_model(*args, **kwargs)
        output.logits = mixed(output.logits, other.logits, self.mixture_coef)
        return output

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """See transformers; `use_cache` is False whatever is asked."""
        return super().generate(*args, **{**kwargs, "use_cache": False})

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What both models are called with: whole rows."""
        return self.model.prepare_inputs_for_generation(*args, **{**kwargs, "use_cache": False})

    def _validate_model_class(self) -> None:
        self.model._validate_model_class()

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        self.model._validate_model_kwargs(model_kwargs)
