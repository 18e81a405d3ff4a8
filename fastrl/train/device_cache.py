"""Hand unused device memory back between the parts of a step, if asked to."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch


def empty_cache() -> None:
    """Release the caching allocator's free blocks, whatever the device."""
    for backend in ("cuda", "xpu", "npu", "mps"):
        device = getattr(torch, backend, None)
        if device is not None and device.is_available():
            device.empty_cache()


def empty_device_cache() -> None:
    """Collect garbage, so that there is more to release, then `empty_cache`."""
    gc.collect()
    empty_cache()


@contextmanager
def emptied_device_cache(enabled: bool) -> Iterator[None]:
    """Empty the cache when the block ends, if enabled (`optimize_device_cache`)."""
    try:
        yield
    finally:
        if enabled:
            empty_device_cache()


class _Decorators(type):
    """Reads and sets `optimize_device_cache` under its name of TRL 0.7.2 and before too."""

    optimize_device_cache: bool

    @property
    def optimize_cuda_cache(cls) -> bool:
        return cls.optimize_device_cache

    @optimize_cuda_cache.setter
    def optimize_cuda_cache(cls, wanted: bool) -> None:
        cls.optimize_device_cache = wanted


class PPODecorators(metaclass=_Decorators):
    """`@PPODecorators.empty_device_cache()` empties the device's cache when a function returns.

    It does so while `PPODecorators.optimize_device_cache` is True, which users set themselves:
    `PPOTrainer` goes by its own config. `empty_cuda_cache` and `optimize_cuda_cache` are the same.
    """

    optimize_device_cache: ClassVar[bool] = False

    @classmethod
    @contextmanager
    def empty_device_cache(cls) -> Iterator[None]:
        """A context manager, and a decorator, as any of contextlib's."""
        yield
        if cls.optimize_device_cache:
            empty_device_cache()

    empty_cuda_cache = empty_device_cache
