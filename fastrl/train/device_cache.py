"""Hand unused device memory back between the parts of a step."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def empty_device_cache() -> None:
    """Collect garbage and release the caching allocator's free blocks, whatever the device."""
    gc.collect()
    for backend in ("cuda", "xpu", "npu", "mps"):
        device = getattr(torch, backend, None)
        if device is not None and device.is_available():
            device.empty_cache()


@contextmanager
def emptied_device_cache(enabled: bool) -> Iterator[None]:
    """Empty the cache when the block ends, if enabled (`optimize_device_cache`)."""
    try:
        yield
    finally:
        if enabled:
            empty_device_cache()
