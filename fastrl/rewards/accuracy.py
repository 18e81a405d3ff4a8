"""Rewards of a right answer, decided by the package math-verify."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastrl.rewards.outcome import TIMEOUT, Outcome
from fastrl.rewards.text import Completion, text_of

LogExtra = Callable[[str, list[Any]], None]

_PARSE_SECONDS, _VERIFY_SECONDS = 10, 5


@dataclass(frozen=True)
class _Verdict:
    """A reward, and how solution and answer were read."""

    reward: Outcome
    gold: str
    answer: str


class _Judge:
    """math-verify with its time limits, which work by signals and so on the main thread only."""

    def __init__(self, asked_by: str) -> None:
        try:
            import math_verify
            from latex2sympy2_extended import NormalizationConfig
            from math_verify.errors import TimeoutException
        except ImportError as error:
            raise ImportError(
                f"{asked_by} needs the package math-verify: pip install math-verify"
            ) from error
        self._parse: Any = math_verify.parse
        self._verify: Any = math_verify.verify
        self._timeout: type[BaseException] = TimeoutException
        # Answers count only as LaTeX: boxed first, then inside delimiters or after an anchor.
        self._answers = math_verify.LatexExtractionConfig(
            normalization_config=NormalizationConfig(units=True),
            boxed_match_priority=0,
            try_extract_without_anchor=False,
        )
        self._limited = threading.current_thread() is threading.main_thread()
        if not self._limited:
            for name in ("math_verify.parser", "math_verify.grader"):
                logging.getLogger(name).setLevel(logging.ERROR)  # it warns that nothing limits it

    def verdict(self, text: str, solution: str) -> _Verdict:
        """Whether the text's answer equals the solution; None if the solution cannot be read."""
        try:
            gold = self._read(solution)
            if not gold:
                return _Verdict(None, "[unparseable]", "[skipped]")
            answer = self._read(
                text, extraction_config=[self._answers], extraction_mode="first_match"
            )
        except self._timeout:
            return _Verdict(TIMEOUT, "[timeout]", "[timeout]")
        shown = str(answer) if answer else "[unparseable]"
        return _Verdict(self._equal(gold, answer), str(gold), shown)

    def _read(self, text: str, **how: Any) -> list[Any]:
        """What the text may mean; nothing if it cannot be read."""
        limit = _PARSE_SECONDS if self._limited else None
        try:
            return self._parse(text, parsing_timeout=limit, raise_on_error=True, **how)
        except Exception:  # whatever the parser stumbles on
            return []

    def _equal(self, gold: list[Any], answer: list[Any]) -> Outcome:
        """1.0 if some reading of each agree."""
        limit = _VERIFY_SECONDS if self._limited else None
        late = False
        for one, other in itertools.product(gold, answer):
            try:
                if self._verify(one, other, timeout_seconds=limit, raise_on_error=True):
                    return 1.0
            except self._timeout:
                late = True
            except Exception:  # readings that cannot be compared are not equal
                continue
        return TIMEOUT if late else 0.0


def _log(log_extra: LogExtra | None, solution: Sequence[str], verdicts: list[_Verdict]) -> None:
    if log_extra is not None:
        log_extra("solution", list(solution))
        log_extra("gold_parsed", [verdict.gold for verdict in verdicts])
        log_extra("answer_parsed", [verdict.answer for verdict in verdicts])


def accuracy_reward(
    completions: list[Completion],
    solution: list[str],
    log_extra: LogExtra | None = None,
    **kwargs: Any,
) -> list[Outcome]:
    r"""1.0 where a completion's mathematical answer equals the solution, else 0.0.

    Args:
        completions: texts, or lists of messages whose first is judged; the answer is looked for in
            LaTeX, `\boxed{...}` first.
        solution: one text a completion.
        log_extra: given by the trainer; columns for its table of completions.
        kwargs: other columns, unused.

    Returns:
        one a completion; None where the solution cannot be read, `TIMEOUT` where reading or
        comparing took too long.

    Raises:
        ImportError: without math-verify.
    """
    judge = _Judge("accuracy_reward")
    pairs = zip(completions, solution, strict=True)
    verdicts = [judge.verdict(text_of(completion), gold) for completion, gold in pairs]
    _log(log_extra, solution, verdicts)
    return [verdict.reward for verdict in verdicts]


def reasoning_accuracy_reward(
    completions: list[Completion],
    solution: list[str],
    reasoning_delimiters: list[str] | None = None,
    log_extra: LogExtra | None = None,
    **kwargs: Any,
) -> list[Outcome]:
    """`accuracy_reward` of what follows the reasoning; 0.0 where the reasoning does not end.

    Args:
        completions, solution, log_extra, kwargs: as for `accuracy_reward`.
        reasoning_delimiters: the first of these that a completion holds ends its reasoning, at its
            last occurrence; by default `</think>`.

    Returns, Raises:
        as `accuracy_reward`.
    """
    judge = _Judge("reasoning_accuracy_reward")
    delimiters = ["</think>"] if reasoning_delimiters is None else reasoning_delimiters
    verdicts = []
    for completion, gold in zip(completions, solution, strict=True):
        text = text_of(completion)
        end = next((delimiter for delimiter in delimiters if delimiter in text), None)
        if end is None:
            verdicts.append(_Verdict(0.0, "[incomplete reasoning]", "[incomplete reasoning]"))
        else:
            verdicts.append(judge.verdict(text.rpartition(end)[2], gold))
    _log(log_extra, solution, verdicts)
    return [verdict.reward for verdict in verdicts]


def get_cosine_scaled_reward(
    max_len: int,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
) -> CosineScaledReward:
    """Accuracy weighted by length along half a cosine (arXiv:2502.03373, appendix C.1).

    A right answer falls from `max_value_correct` at no tokens to `min_value_correct` at `max_len`
    and beyond; a wrong one rises from `min_value_wrong` to `max_value_wrong`.

    Raises:
        ValueError: for a `max_len` that is not positive.
    """
    if max_len <= 0:
        raise ValueError(f"max_len must be positive, got {max_len}")
    return CosineScaledReward(
        max_len, min_value_wrong, max_value_wrong, min_value_correct, max_value_correct
    )


@dataclass(frozen=True)
class CosineScaledReward:
    """See `get_cosine_scaled_reward`; an object, so that it can be sent to a worker."""

    max_len: int
    min_value_wrong: float
    max_value_wrong: float
    min_value_correct: float
    max_value_correct: float

    __name__ = "cosine_scaled_reward"

    def __call__(
        self,
        completions: list[Completion],
        solution: list[str],
        completion_ids: Sequence[Sequence[int]],
        **kwargs: Any,
    ) -> list[Outcome]:
        """One a completion; None or `TIMEOUT` where `accuracy_reward` says so."""
        right = accuracy_reward(completions, solution)
        return [
            verdict if verdict is None or math.isnan(verdict) else self._scaled(verdict, len(ids))
            for verdict, ids in zip(right, completion_ids, strict=True)
        ]

    def _scaled(self, right: float, tokens: int) -> float:
        empty, full = self.min_value_wrong, self.max_value_wrong
        if right:
            empty, full = self.max_value_correct, self.min_value_correct
        falling = (1.0 + math.cos(math.pi * min(tokens / self.max_len, 1.0))) / 2
        return full + (empty - full) * falling
