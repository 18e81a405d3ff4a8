"""A logistic regression by Newton's method, for where scikit-learn is not installed."""

from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import numpy as np


class LogisticRegression:
    """The minimum of Σ s_i log(1 + exp(-y_i f_i)) + ‖w‖²/2, found to fp64's precision."""

    def __init__(self, class_weight: str) -> None:
        assert class_weight == "balanced"

    def fit(self, embeddings: np.ndarray, labels: np.ndarray) -> LogisticRegression:
        """f = w·e + b; s_i weighs both classes alike."""
        inputs = np.c_[np.float64(embeddings), np.ones(len(labels))]
        share = np.where(labels == 1, labels.mean(), 1 - labels.mean())
        weight = 0.5 / share
        held = np.diag([*[1.0] * embeddings.shape[1], 0.0])
        found = np.zeros(inputs.shape[1])
        for _ in range(30):
            p = 1 / (1 + np.exp(-inputs @ found))
            slope = inputs.T @ (weight * (p - labels)) + held @ found
            curve = (inputs * (weight * p * (1 - p))[:, None]).T @ inputs + held
            found -= np.linalg.solve(curve, slope)
        self.coef_, self.intercept_ = found[None, :-1], found[-1:]
        return self


def installed() -> bool:
    """Whether scikit-learn can be imported."""
    return find_spec("sklearn") is not None


def regression() -> Any:
    """Inside, BCO has a logistic regression: scikit-learn's, else this one."""
    if installed():
        return nullcontext()
    return patch("fastrl.algos.bco_matching.logistic_regression", lambda: LogisticRegression)
