"""A pairwise judge in the place of a reward function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastrl.data.formats import is_conversational
from fastrl.rewards.judges import FAILED
from fastrl.train.online_config import OnlineConfig


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
        places = list(self.judge.judge(asked, pairs))
        if len(places) != len(pairs) or not set(places) <= {0, 1, FAILED}:
            raise ValueError(
                f"{self.__name__} must give 0, 1 or -1 for each of {len(pairs)} pairs, got {places}"
            )
        rewards: dict[int, list[float | None]]
        rewards = {0: [1.0, 0.0], 1: [0.0, 1.0], FAILED: [None, None]}
        return [reward for place in places for reward in rewards[place]]


def rewards_or_judge(
    reward_funcs: Any, judge: Any, processing_classes: Any, args: OnlineConfig
) -> Any:
    """The reward functions; or the judge as the only one.

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
    return JudgeReward(judge)
