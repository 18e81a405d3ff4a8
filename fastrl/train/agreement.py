"""A failure on one rank becomes a failure on all, so that nobody waits for a rank that is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator


@contextmanager
def agreed(accelerator: Accelerator, what: str) -> Iterator[None]:
    """Run checks in a block; if any rank's block raised, every rank raises.

    The rank that failed raises its own error; the others raise RuntimeError naming it. One int
    is reduced over the ranks, and nothing at all on a single process.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    failed = accelerator.process_index + 1 if error is not None else 0
    if accelerator.num_processes > 1:
        ranks = accelerator.gather(torch.tensor([failed], device=accelerator.device))
        failed = int(ranks.max())
    if error is not None:
        raise error
    if failed:
        raise RuntimeError(f"{what} failed on rank {failed - 1}; its own error says why")
