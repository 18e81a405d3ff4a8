"""A pairwise judge in the place of a reward function."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from fastrl.data.formats import is_conversational
from fastrl.rewards.judges import FAILED
from fastrl.train.online_config import OnlineConfig

Rewards = tuple[float | None, float | None]  # of the two completions of a pair


def spoken(messages: Sequence[dict[str, Any]]) -> str:
    """Messages as one text that needs no chat template to be understood."""
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages)


class JudgeReward:
    """1 for the completion that a judge prefers, 0 for the other, None where it could not say.

    Messages are given to the judge as `spoken` texts.

    Args:
        judge: with a method `judge(prompts, pairs)` as of `BasePairwiseJudge`.

    Raises:
        TypeError: for anything else.
    """

    def __init__(self, judge: Any) -> None:
        if not callable(getattr(judge, "judge", None)):
            raise TypeError(
                f"judge must have a method judge(prompts, pairs), got {type(judge).__name__}: "
                "derive yours from BasePairwiseJudge"
            )
        self.__name__ = type(judge).__name__
        self.judge = judge

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """Those of 2B completions.

        Args:
            prompts, completions: 2B texts or lists of messages, a pair's one after the other.
            columns: what other reward functions are given; not used.

        Raises:
            ValueError: for a verdict that is not 0, 1 or -1 for each pair.
        """
        asked, said = list(prompts[0::2]), list(completions)
        if is_conversational({"prompt": asked[0]}):
            asked = [spoken(messages) for messages in asked]
            said = [spoken(messages) for messages in said]
        pairs = list(zip(said[0::2], said[1::2], strict=True))
        return [reward for two in self._rewards(asked, pairs) for reward in two]

    def _rewards(self, prompts: list[str], pairs: list[tuple[str, str]]) -> list[Rewards]:
        places = list(self.judge.judge(prompts, pairs))
        if len(places) != len(pairs) or not set(places) <= {0, 1, FAILED}:
            raise ValueError(
                f"{self.__name__} must give 0, 1 or -1 for each of {len(pairs)} pairs, got {places}"
            )
        rewards: dict[int, Rewards] = {0: (1.0, 0.0), 1: (0.0, 1.0), FAILED: (None, None)}
        return [rewards[place] for place in places]


class JudgeProbability(JudgeReward):
    """The probability that a judge prefers a completion: P for the first of a pair, 1 - P.

    A judge whose method takes `return_scores` is asked for P; of any other a preference is 1 or 0.
    """

    def __init__(self, judge: Any) -> None:
        super().__init__(judge)
        self._asks = "return_scores" in inspect.signature(judge.judge).parameters

    def _rewards(self, prompts: list[str], pairs: list[tuple[str, str]]) -> list[Rewards]:
        if not self._asks:
            return super()._rewards(prompts, pairs)
        found = [float(p) for p in self.judge.judge(prompts, pairs, return_scores=True)]
        if len(found) != len(pairs) or not all(0 <= p <= 1 or p == FAILED for p in found):
            raise ValueError(
                f"{self.__name__} must give a probability, or -1, for each of {len(pairs)} pairs, "
                f"got {found}"
            )
        return [(None, None) if p == FAILED else (p, 1.0 - p) for p in found]


def rewards_or_judge(
    reward_funcs: Any,
    judge: Any,
    processing_classes: Any,
    args: OnlineConfig,
    kind: type[JudgeReward] = JudgeReward,
) -> Any:
    """The reward functions; or the judge as the only one, of this kind.

    Raises:
        ValueError: for both, or settings of rewards beside a judge.
        TypeError: as `JudgeReward`.
    """
    if judge is None:
        return reward_funcs
    beside = {
        "reward_funcs": reward_funcs,
        "reward_processing_classes": processing_classes,
        "args.reward_weights": args.reward_weights,
        "args.missing_eos_penalty": getattr(args, "missing_eos_penalty", None),
    }
    for name, given in beside.items():
        if given is not None:
            raise ValueError(f"{name} is of rewards, and a judge gives none: leave one of them out")
    return kind(judge)
