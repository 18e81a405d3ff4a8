"""How often a reward model, or a classifier of tokens, is right."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from fastrl.legacy.generation import pinned
from fastrl.train.batch import IGNORED


def compute_accuracy(eval_pred: Any) -> dict[str, float]:
    """The share of right predictions, for `compute_metrics`.

    Ties count neither way, as in TRL since 0.13; with the API pinned to "0.7" or "0.11" they count
    as a larger first column, as they did there.

    Args:
        eval_pred: (predictions, labels): of pairs (N, 2) and (N,), the larger column being the
            answer; of tokens (N, T, labels) and (N, T), where -100 is left out.

    Returns:
        `{"accuracy": …}`, NaN if nothing is left to judge.

    Warns:
        UserWarning: if there are ties.
    """
    predictions, labels = (np.asarray(part) for part in eval_pred)
    if predictions.ndim == 3:
        judged = labels != IGNORED
    else:
        tied = predictions[:, 0] == predictions[:, 1]
        old = pinned() in ("0.7", "0.11")
        judged = np.ones_like(tied) if old else ~tied
        if tied.any():
            counted = "count as the first being larger" if old else "are left out of the accuracy"
            warnings.warn(
                f"{tied.sum()} of {len(predictions)} pairs have equal rewards and {counted}",
                stacklevel=2,
            )
    right = predictions.argmax(-1)[judged] == labels[judged]
    return {"accuracy": float(right.mean()) if right.size else float("nan")}
