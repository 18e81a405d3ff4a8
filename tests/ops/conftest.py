"""Op tests: every backend that this machine has, in memory that was filled with NaN."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fastrl.ops import use_backend
from fastrl.ops._dispatch import backend_missing


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """So that work is shared out where a backend shares it."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


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


@pytest.fixture
def cpp() -> Iterator[None]:
    """The C++ backend serves every call of the test, whatever FASTRL_BACKEND says."""
    reason = backend_missing("cpp")
    if reason is not None:
        pytest.skip(reason)
    with use_backend("cpp"):
        yield


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


@dataclass(frozen=True)
class Kernels:
    """A GPU backend of every operation that has it, and the device whose tensors it takes here."""

    backend: str
    device: str

    def __call__(self, op: str) -> Any:
        """The op's namespace."""
        if self.backend == "triton":
            return importlib.import_module(f"fastrl.kernels.{op}")
        name = "".join(part.capitalize() for part in op.split("_"))
        return getattr(importlib.import_module("fastrl.ops._cuda"), name)


@pytest.fixture(scope="session")
def cuda_on_cpu(request: pytest.FixtureRequest) -> ModuleType:
    """The CUDA library compiled for the CPU (tests/ops/cuda_on_cpu)."""
    path = Path(__file__).parent / "cuda_on_cpu" / "build.py"
    spec = importlib.util.spec_from_file_location("cuda_on_cpu_build", path)
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    try:
        return build.load(request.config.cache.mkdir("cuda_on_cpu"))
    except build.Unavailable as reason:
        pytest.skip(f"CUDA kernels cannot be run on the CPU: {reason}")


def _triton_missing(interpreted: bool) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if interpreted and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton's kernels run for real here (make test-gpu)"
    return None


@pytest.fixture(
    params=[
        "triton interpreted",
        "cuda on the CPU",
        pytest.param("triton", marks=pytest.mark.gpu),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """The Triton and the CUDA kernels: on the GPU if there is one, else as the CPU can run them."""
    if request.param == "cuda on the CPU":
        from fastrl.ops import _cuda, _native

        library = request.getfixturevalue("cuda_on_cpu")
        monkeypatch.setattr(_native, "load", lambda kind: library)
        monkeypatch.setattr(_cuda, "_stream", lambda tensor: 0)
        return Kernels("cuda", "cpu")
    backend = request.param.split()[0]
    interpreted = request.param == "triton interpreted"
    reason = _triton_missing(interpreted) if backend == "triton" else None
    if reason is None and not interpreted:
        reason = backend_missing(backend) if torch.cuda.is_available() else "there is no GPU"
    if reason is not None:
        pytest.skip(reason)
    return Kernels(backend, "cpu" if interpreted else "cuda")
