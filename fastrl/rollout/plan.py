"""How the answers of one call come about: by the engine, or by the model's own `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from fastrl.legacy import warn_once
from fastrl.models import door
from fastrl.rollout.completion import Completion, Request
from fastrl.rollout.engine import Engine
from fastrl.rollout.fallback import Fallback
from fastrl.rollout.sampling import Sampling, resolved, sampling_of, unserved
from fastrl.rollout.serving import Served, served, serving
from fastrl.rollout.stops import StopStrings


@dataclass(frozen=True)
class Plan:
    """A model and the settings of its answers."""

    model: nn.Module
    config: GenerationConfig  # resolved
    others: dict[str, Any]  # arguments of `model.generate` that are no settings
    sampling: Sampling
    tokenizer: PreTrainedTokenizerBase | None

    @staticmethod
    def of(
        model: nn.Module,
        generation_config: GenerationConfig | None,
        arguments: dict[str, Any],
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Plan:
        """Settings as `model.generate` would resolve them; the tokenizer spells stop strings.

        Raises:
            ValueError: for a wrong setting, or stop strings without a tokenizer.
        """
        instance, _ = door.find(model)
        config, others = resolved(instance, generation_config, arguments)
        tokenizer = others.pop("tokenizer", tokenizer)
        sampling = sampling_of(config)
        if sampling.stop and tokenizer is None:
            raise ValueError("stop_strings need tokenizer=, which tells what tokens spell")
        return Plan(model, config, others, sampling, tokenizer)

    def served(self) -> Served | str:
        """What the engine runs, or why it cannot."""
        for name in self.others:
            return f"{name}= is an argument of model.generate only"
        setting = unserved(self.config)
        if setting is not None:
            return f"{setting} is a setting of model.generate only"
        return served(self.model)

    def say(self, reason: str) -> None:
        """Warn once that the model's own `generate` does the work."""
        name = type(door.find(self.model)[0]).__name__
        warn_once(f"{name} answers through its own generate: {reason}")

    def answers(
        self, requests: Sequence[Request], max_rows: int | None = None
    ) -> list[tuple[Completion, ...]]:
        """Those to each request, in order."""
        found = self.served()
        if isinstance(found, str):
            self.say(found)
            return self._fallback().run(requests)
        return self.by_engine(found, requests, max_rows)

    def by_engine(
        self, served: Served, requests: Sequence[Request], max_rows: int | None = None
    ) -> list[tuple[Completion, ...]]:
        """The engine's answers."""
        with serving(self.model, served):
            return Engine(served, requests, self.sampling, self._ends(), max_rows).run()

    def _fallback(self) -> Fallback:
        spelt = {"tokenizer": self.tokenizer} if self.sampling.stop else {}
        arguments = {**self.others, **spelt}
        plain = self.sampling.plain and unserved(self.config) is None and not self.others
        return Fallback(self.model, self.config, arguments, self.sampling, self._ends(), plain)

    def _ends(self) -> Callable[[list[int]], bool] | None:
        if self.tokenizer is None or not self.sampling.stop:
            return None
        return StopStrings(self.tokenizer, self.sampling.stop)
