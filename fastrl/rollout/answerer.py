"""What a trainer asks of whatever answers its prompts, in this process or elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import nn

from fastrl.rollout.completion import Completion, Request


@runtime_checkable
class Answerer(Protocol):
    """Answers prompts with the weights it was last given.

    Every rank makes the same calls in the same order; each asks for its own prompts.
    """

    def answers(self, requests: Sequence[Request]) -> list[tuple[Completion, ...]]:
        """Those to each request, in order, as many as the request has seeds."""

    def sync(self, model: nn.Module, accelerator: Any) -> None:
        """Take over the weights of the policy as it now is."""

    def sleep(self) -> None:
        """Give up memory until the next `sync`, if that was asked for; else do nothing."""

    def close(self) -> None:
        """Give up everything; nothing may be asked afterwards."""
