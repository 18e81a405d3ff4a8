"""Folders of runs in groups that differ in nothing but the seed, and numbers over their seeds."""

from __future__ import annotations

import glob
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

SEED = re.compile(r"[-_.](seed)?[-_.]?\d+$")


def find(patterns: Sequence[str]) -> dict[str, list[Path]]:
    """Label -> the folders of its runs.

    Args:
        patterns: folders, or patterns of them in quotes; `label=` before one names its group.
            Without it a run's group is its folder's name less the seed: `runs/peft-1`,
            `runs/peft-seed-2` and `runs/peft_3` are all of `peft`.

    Raises:
        ValueError: a pattern that no folder fits.
    """
    groups: dict[str, list[Path]] = {}
    for given in patterns:
        label, folders = "", fitting(given)
        if not folders and "=" in given:
            label, pattern = given.split("=", 1)
            folders = fitting(pattern)
        if not folders:
            raise ValueError(f"{given}: no folder of a run fits this")
        for folder in folders:
            name = label or SEED.sub("", folder.resolve().name)
            groups.setdefault(name, []).append(folder)
    return groups


def fitting(pattern: str) -> list[Path]:
    """The folders that a pattern names, in order."""
    return [Path(name) for name in sorted(glob.glob(pattern)) if Path(name).is_dir()]


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1), which a single value has none of."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), deviation
