"""Where a step's time went."""

from __future__ import annotations

import time


class Stopwatch:
    """Laps of one step, in seconds, under TRL's `time/ppo/*` keys."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """The time since the last lap belongs to `name`."""
        now = time.perf_counter()
        self._laps[f"time/ppo/{name}"] = now - self._last
        self._last = now

    def total(self) -> dict[str, float]:
        """All laps, and the time since the start."""
        return {**self._laps, "time/ppo/total": time.perf_counter() - self._start}
