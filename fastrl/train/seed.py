"""One seed for every generator that training draws from."""

from __future__ import annotations

import random

import numpy as np
import torch


def set_seed(seed: int) -> None:
    """Seed python, numpy, torch and every visible GPU. The seed is a whole number in [0, 2³²)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
