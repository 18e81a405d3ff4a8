"""Metrics the host knows, alike on every process: of completions and rewards."""

from __future__ import annotations

import math


class HostMetrics:
    """Lists of values, logged as their means."""

    def __init__(self) -> None:
        self._held: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        """Add a value; NaN stands for none."""
        self._held.setdefault(name, []).append(value)

    def replace(self, name: str, value: float) -> None:
        """Let the newest value be the only one, for what counts up by itself."""
        self._held[name] = [value]

    def collect(self) -> dict[str, float | None]:
        """The means since the last call, None where there were only NaNs; and a fresh start."""
        held, self._held = self._held, {}
        found: dict[str, float | None] = {}
        for name, values in held.items():
            known = [value for value in values if not math.isnan(value)]
            found[name] = sum(known) / len(known) if known else None
        return found
