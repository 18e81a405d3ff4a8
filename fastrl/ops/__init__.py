"""Operations with a torch reference and native backends. Each file here is one operation."""

from __future__ import annotations

from fastrl.ops._dispatch import BackendUnavailable, forced_backend, use_backend

__all__ = [
    "BackendUnavailable",
    "forced_backend",
    "use_backend",
]
