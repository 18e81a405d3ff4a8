"""vLLM in this process seeds and draws from the generators that training draws from.

So these are put aside while it works, and seeded by what it is asked: its draws then follow from
the requests, on each rank that asks the same, and training's are as if it had not been there.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fastrl.rollout.completion import Request


def seed_of(requests: Sequence[Request]) -> int:
    """One seed for several requests, below 2³¹, from all of theirs and their order."""
    seeds = np.array([seed for request in requests for seed in request.seeds], dtype=np.int64)
    return int.from_bytes(hashlib.sha256(seeds.tobytes()).digest()[:4], "little") >> 1


@contextmanager
def put_aside(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Leave Python's, numpy's and torch's generators as they were.

    Args:
        device: whose generator is meant, besides the CPU's.
        seed: what all of them begin with inside; None: where they are.
    """
    on_device: Any = None if device.type == "cpu" else torch.get_device_module(device)
    pythons, numpys, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = None if on_device is None else on_device.get_rng_state(device)
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)
            if on_device is not None:
                on_device.manual_seed(seed)
        yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)
        torch.set_rng_state(torchs)
        if on_device is not None:
            on_device.set_rng_state(devices, device)
