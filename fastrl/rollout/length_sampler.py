"""Random lengths of responses."""

from __future__ import annotations

import numpy as np


class LengthSampler:
    """Called, it draws a whole number from [min_value, max_value), each as likely, by numpy's seed.

    Raises:
        ValueError: if the range holds no number.
    """

    def __init__(self, min_value: int, max_value: int) -> None:
        self.values = list(range(min_value, max_value))
        if not self.values:
            raise ValueError(
                f"max_value={max_value} is no length itself and must be above min_value="
                f"{min_value}: LengthSampler({min_value}, {min_value + 1}) always gives {min_value}"
            )

    def __call__(self) -> int:
        return int(np.random.choice(self.values))
