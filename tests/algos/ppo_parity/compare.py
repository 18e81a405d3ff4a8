"""How far one run is from a recorded one, in the two measures that parity is stated in.

`python compare.py <ours> <theirs>` prints the worst of each case in two folders of `record.py`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SCALAR_TOLERANCE = 1e-4  # times max(|TRL's|, SCALAR_FLOOR)
SCALAR_FLOOR = 1e-3
WEIGHT_TOLERANCE = 1e-3  # times the distance TRL moved the tensor


@dataclass(frozen=True)
class Recording:
    """A recorded run: statistics of each step, and the weights that moved."""

    keys: list[str]
    steps: list[dict[str, Any]]
    weights: dict[str, np.ndarray]
    draws: list[float]
    digest: str  # of this rank's final weights
    versions: dict[str, str]


def load(folder: Path, name: str, rank: int | None = None) -> Recording:
    """Read what `record.py` wrote for a case."""
    suffix = "" if rank is None else f".rank{rank}"
    said = json.loads((folder / f"{name}{suffix}.json").read_text())
    with np.load(folder / f"{name}.npz") as archive:
        weights = {key: archive[key] for key in archive.files}
    return Recording(
        said["keys"], said["steps"], weights, said["draws"], said["digest"], said["versions"]
    )


def scalar_errors(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """Per statistic: the difference over what is allowed; 1 is the limit, equal NaNs are 0."""
    errors = {}
    for key, want in theirs.items():
        got = ours.get(key, float("nan"))
        if (np.isnan(want) and np.isnan(got)) or got == want:
            errors[key] = 0.0
            continue
        allowed = SCALAR_TOLERANCE * max(abs(want), SCALAR_FLOOR)
        error = abs(got - want) / allowed
        errors[key] = float("inf") if np.isnan(error) else float(error)
    return errors


def weight_errors(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], start: dict[str, np.ndarray]
) -> dict[str, float]:
    """Per tensor: distance to TRL's over what is allowed; what TRL left alone must be untouched."""
    errors = {}
    for key, first in start.items():
        want = theirs.get(key, first).astype(np.float64)
        moved = np.linalg.norm(want - first)
        distance = np.linalg.norm(ours[key].astype(np.float64) - want)
        errors[key] = (
            0.0 if distance == 0 else float(distance / max(WEIGHT_TOLERANCE * moved, 1e-30))
        )
    return errors


def main() -> None:
    """Print, case by case, the worst scalar and the worst weight tensor (1 is the limit)."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from ppo_parity.cases import CASES, TWO_PROCESS_CASES
    from ppo_parity.running import starting_weights

    ours_folder, theirs_folder = map(Path, sys.argv[1:3])
    for case in CASES + TWO_PROCESS_CASES:
        for rank in (None,) if case.num_processes == 1 else range(case.num_processes):
            folders = (ours_folder, theirs_folder)
            if not all((folder / f"{case.name}.npz").exists() for folder in folders):
                continue
            ours, theirs = load(ours_folder, case.name, rank), load(theirs_folder, case.name, rank)
            scalars = [
                (value, key, step)
                for step, (a, b) in enumerate(zip(ours.steps, theirs.steps, strict=True))
                for key, value in scalar_errors(a["scalars"], b["scalars"]).items()
            ]
            start = starting_weights(ours.weights | theirs.weights)
            moved = weight_errors({**start, **ours.weights}, theirs.weights, start)
            weights = [(value, key) for key, value in moved.items()]
            print(f"{case.name:32} {max(scalars)!s:60} {max(weights)}")


if __name__ == "__main__":
    main()
