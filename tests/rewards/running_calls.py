"""What the tests of running reward functions share: a call of them all, and their scores."""

from __future__ import annotations

import pytest

from fastrl.rewards.running import RewardFunctions

ROWS = ["a", "bb", "ccc"]
UNSCORED = "ignore:.*have no score from any"


@pytest.fixture(name="run")
def scoring():
    """run(functions, timeout, **columns) -> Scores; closes what it made."""
    made = []

    def score(functions, timeout=None, completions=ROWS, **given):
        if not isinstance(functions, RewardFunctions):
            functions = RewardFunctions(functions, timeout)
            made.append(functions)
        keywords = {
            "prompts": [f"p{i}" for i in range(len(completions))],
            "completions": completions,
            "completion_ids": [[1]] * len(completions),
            "trainer_state": None,
            "log_extra": lambda *_: None,
            "log_metric": lambda *_: None,
            "environments": None,
        }
        own = {name: given.pop(name) for name in list(given) if name in keywords}
        return functions.score(columns=given, **{**keywords, **own})

    yield score
    for functions in made:
        functions.close()


def values(scores):
    return scores.values.T.tolist()
