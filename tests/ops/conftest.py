"""Op tests: every backend that this machine has, in memory that was filled with NaN."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastrl.ops import use_backend
from fastrl.ops._dispatch import backend_missing


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty and its like hand out NaN (or the largest integer), so unwritten output shows."""
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before, warn_only=warned)


@pytest.fixture(params=["reference", "cpp"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the backend that serves every call of the test."""
    reason = backend_missing(request.param)
    if reason is not None:
        pytest.skip(reason)
    with use_backend(request.param):
        yield request.param


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """The CPU library limited to an instruction set (skipped where the processor lacks it)."""
    if backend_missing("cpp") is not None:
        pytest.skip(backend_missing("cpp"))
    from fastrl.ops import _native

    core = _native.load("cpu")
    level = ["baseline", "avx2", "avx512"].index(request.param)
    core.limit_isa(2)
    if core.isa() < level:
        pytest.skip(f"this processor has no {request.param}")
    core.limit_isa(level)
    yield request.param
    core.limit_isa(2)
