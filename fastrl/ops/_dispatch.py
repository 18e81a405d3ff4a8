"""The only door from an operation to its backends.

A backend is a namespace (class or module) with the functions its operation names, e.g. `forward`
and `backward`. `reference` is plain torch and always present; `cpp` is the CPU library; `cuda` and
`triton` serve NVIDIA GPUs. Left alone, the best one for the tensor's device is taken; a backend
that was asked for by name and cannot serve is an error that says why, never a silent fallback.
"""

from __future__ import annotations

import importlib
import os
from types import TracebackType
from typing import Any

import torch

from fastrl.ops import _native

BACKENDS = ("reference", "cpp", "cuda", "triton")
NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.bool, torch.int32, torch.int64)

OPS: dict[str, Op] = {}


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot serve this call; the message says why."""


def _checked(name: str | None, source: str) -> str | None:
    if name is not None and name not in BACKENDS:
        raise ValueError(f"{source}: {name!r} is no backend; choose one of {', '.join(BACKENDS)}")
    return name


_forced: str | None = _checked(os.environ.get("FASTRL_BACKEND") or None, "FASTRL_BACKEND")


class use_backend:
    """Force one backend for every operation, from now on or within a `with` block.

    `use_backend("reference")` stays until changed, `use_backend(None)` goes back to the automatic
    choice, and `with use_backend("cpp"): ...` restores what was before at the end of the block.

    Raises:
        ValueError: for a name that is not in `BACKENDS`.
        BackendUnavailable: at the first call of an operation that the backend cannot serve.
    """

    def __init__(self, name: str | None) -> None:
        global _forced
        self._previous = _forced
        _forced = _checked(name, "use_backend")

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _forced
        _forced = self._previous


def forced_backend() -> str | None:
    """The backend asked for by `use_backend` or `FASTRL_BACKEND`, or None."""
    return _forced


def _triton_missing() -> str | None:
    """Why Triton kernels cannot run here, or None. The interpreter counts as running."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton does not import ({error})"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return "no NVIDIA GPU is visible to torch (set TRITON_INTERPRET=1 to interpret on the CPU)"
    return None


def backend_missing(name: str) -> str | None:
    """Why the backend cannot be used on this machine, or None if it can."""
    if name == "reference":
        return None
    if name == "triton":
        return _triton_missing()
    return _native.missing("cpu" if name == "cpp" else "cuda")


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the tensor owns ordinary memory (no DTensor, FakeTensor, functorch wrapper)."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) and not (
        torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


class Op:
    """One operation: its reference and where its other backends live.

    Args:
        name: the public name; also the row in `fastrl env`.
        reference: namespace of torch functions.
        cpp, cuda, triton: a namespace, or `"module"` / `"module:attribute"` imported at first use.
    """

    def __init__(self, name: str, reference: Any, **backends: Any) -> None:
        self.name = name
        self._backends: dict[str, Any] = {"reference": reference, **backends}
        OPS[name] = self

    def has(self, backend: str) -> bool:
        """Whether the operation was written for the backend, on whatever machine."""
        return backend in self._backends

    def missing(self, backend: str) -> str | None:
        """Why this operation has no such backend on this machine, or None if it has."""
        if not self.has(backend):
            return f"{self.name} has no {backend} backend"
        return backend_missing(backend)

    def _load(self, backend: str) -> Any:
        found = self._backends[backend]
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            found = importlib.import_module(module)
            found = getattr(found, attribute) if attribute else found
            self._backends[backend] = found
        return found

    def _refusal(self, backend: str, tensors: tuple[torch.Tensor, ...]) -> str | None:
        """Why the backend cannot take these tensors, or None."""
        reason = self.missing(backend)
        if reason is not None or backend == "reference":
            return reason
        device = "cpu" if backend == "cpp" else "cuda"
        for tensor in tensors:
            if not is_plain(tensor):
                return f"{type(tensor).__name__} has no plain memory"
            interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
            if tensor.device.type != device and not interpreted:
                return f"a tensor is on {tensor.device}, the backend serves {device}"
            if tensor.dtype not in NATIVE_DTYPES:
                return f"dtype {tensor.dtype} is served by the reference only"
        return None

    def pick(self, *tensors: torch.Tensor) -> Any:
        """The namespace that serves tensors like these (all on one device).

        Raises:
            BackendUnavailable: if a backend is forced that cannot serve them.
        """
        if _forced is not None:
            reason = self._refusal(_forced, tensors)
            if reason is not None:
                raise BackendUnavailable(
                    f"{self.name}: backend {_forced!r} was asked for: {reason}"
                )
            return self._load(_forced)
        order = {"cpu": ("cpp",), "cuda": ("cuda", "triton")}.get(tensors[0].device.type, ())
        for backend in order:
            if self._refusal(backend, tensors) is None:
                return self._load(backend)
        return self._load("reference")

    def differentiable(self) -> Any:
        """The reference, for inputs that need a gradient which no other backend computes.

        Raises:
            BackendUnavailable: if another backend is forced.
        """
        if _forced not in (None, "reference"):
            raise self._unavailable("an input requires grad, and only the reference has a backward")
        return self._load("reference")

    def _unavailable(self, reason: str) -> BackendUnavailable:
        return BackendUnavailable(f"{self.name}: backend {_forced!r} was asked for: {reason}")


def table() -> list[tuple[str, dict[str, str | None]]]:
    """For each operation, backend -> reason it is missing here (None: present)."""
    return [(op.name, {b: op.missing(b) for b in BACKENDS}) for op in OPS.values()]
