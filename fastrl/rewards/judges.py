"""Judges: they read prompts with completions and say which completion is better, or good at all.

Interface of TRL 0.11 to 0.28 (`trl.experimental.judges` there at last).
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import string
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from accelerate import Accelerator
from huggingface_hub import InferenceClient

Pairs = Sequence[Sequence[str]]

FAILED = -1  # what a judge says of a row that it could not judge
_NOT_WRITTEN = "a judge writes its own judge(), which does not call that of its base class"
DEFAULT_PAIRWISE_SYSTEM_PROMPT = """\
Two assistants, 0 and 1, were given the same request. Decide whose reply serves the person who \
made it better: look at whether it is right, answers what was asked, and is clear. Neither order \
nor length is a merit.

<request>
{prompt}
</request>

<reply assistant="0">
{response0}
</reply>

<reply assistant="1">
{response1}
</reply>

Which assistant's reply is better? Write one character, 0 or 1, and nothing before or after it."""


class BaseJudge(ABC):
    """What all judges but those that rank have in common."""

    @abstractmethod
    def judge(
        self, prompts: list[str], completions: list[Any], shuffle_order: bool = True
    ) -> list[Any]:
        """A verdict for each prompt; -1 where it could not be reached."""
        raise NotImplementedError(_NOT_WRITTEN)


class BaseRankJudge(ABC):
    """Orders any number of completions to a prompt."""

    @abstractmethod
    def judge(
        self, prompts: list[str], completions: list[list[str]], shuffle_order: bool = True
    ) -> list[list[int]]:
        """For each prompt the places of its completions, the best one's first."""
        raise NotImplementedError(_NOT_WRITTEN)


class BasePairwiseJudge(BaseJudge):
    """Says which of two completions to a prompt is better."""

    @abstractmethod
    def judge(
        self, prompts: list[str], completions: Pairs, shuffle_order: bool = True
    ) -> list[int]:
        """For each prompt 0 or 1, the place of the better completion, or -1 if that failed.

        Args:
            prompts: N texts.
            completions: N pairs of texts.
            shuffle_order: show pairs in random order, so that the judge cannot prefer a place.
        """
        raise NotImplementedError(_NOT_WRITTEN)


class BaseBinaryJudge(BaseJudge):
    """Says whether a completion is good, as a constraint has it (CGPO, arXiv 2409.20370)."""

    @abstractmethod
    def judge(
        self,
        prompts: list[str],
        completions: list[str],
        gold_completions: list[str] | None = None,
        shuffle_order: bool = True,
    ) -> list[int]:
        """For each prompt 1 (good), 0 (not), or -1 if that failed.

        Args:
            prompts, completions: N texts each.
            gold_completions: N texts that are known to be good.
            shuffle_order: ask in random order, where the judge sees several at once.
        """
        raise NotImplementedError(_NOT_WRITTEN)


class RandomRankJudge(BaseRankJudge):
    """An order by chance (python's `random`), for trying things out."""

    def judge(
        self, prompts: list[str], completions: list[list[str]], shuffle_order: bool = True
    ) -> list[list[int]]:
        """See `BaseRankJudge`."""
        return [random.sample(range(len(row)), len(row)) for row in completions]


class RandomPairwiseJudge(BasePairwiseJudge):
    """A choice by chance (python's `random`), for trying things out."""

    def judge(
        self, prompts: list[str], completions: Pairs, shuffle_order: bool = True
    ) -> list[int]:
        """See `BasePairwiseJudge`; of more than two completions it takes any."""
        return [random.randint(0, len(row) - 1) for row in completions]


class AllTrueJudge(BaseBinaryJudge):
    """Good is what all of several judges find good (CGPO, arXiv 2409.20370, section 4.1.4).

    Args:
        judges: the judges.

    Raises:
        ValueError: for none.
    """

    def __init__(self, judges: list[BaseBinaryJudge]) -> None:
        if not judges:
            raise ValueError("judges is empty: give at least one judge")
        self.judges = judges

    def judge(
        self,
        prompts: list[str],
        completions: list[str],
        gold_completions: list[str] | None = None,
        shuffle_order: bool = True,
    ) -> list[int]:
        """1 where all say 1, -1 where one failed, else 0.

        Raises:
            ValueError: for a verdict that is none of these.
        """
        asked = (prompts, completions, gold_completions, shuffle_order)
        verdicts = zip(*(judge.judge(*asked) for judge in self.judges), strict=True)
        return [_united(row, several) for row, several in enumerate(verdicts)]


def _united(row: int, verdicts: tuple[int, ...]) -> int:
    if not set(verdicts) <= {0, 1, FAILED}:
        raise ValueError(f"judges said {verdicts} of completion {row}: only 0, 1 and -1 are known")
    return FAILED if FAILED in verdicts else min(verdicts)


def _flips(count: int, shuffle_order: bool) -> np.ndarray:
    """Which pairs to show the other way round: (N,) bool, by numpy's seed."""
    if not shuffle_order:
        return np.zeros(count, dtype=bool)
    return np.random.choice([True, False], size=count)


def _flipped(completions: Pairs, flips: np.ndarray) -> list[Sequence[str]]:
    return [p[::-1] if flip else p for p, flip in zip(completions, flips, strict=True)]


def _require_pairs(prompts: Sequence[str], completions: Pairs) -> None:
    """Refuse what is not one pair for each prompt.

    Raises:
        ValueError: naming the row.
    """
    if len(completions) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many pairs, got {len(completions)}")
    for row, pair in enumerate(completions):
        if isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"completions[{row}] must be 2 texts, got {pair!r:.80}")


class _PromptedJudge(BasePairwiseJudge):
    """Asks a language model about each pair, many at a time; it answers with one character."""

    _ask: Callable[[str], str | None]

    def __init__(self, system_prompt: str | None) -> None:
        self.system_prompt = system_prompt or DEFAULT_PAIRWISE_SYSTEM_PROMPT
        held = {name for _, name, _, _ in string.Formatter().parse(self.system_prompt) if name}
        missing = {"prompt", "response0", "response1"} - held
        if missing:
            raise ValueError(
                f"system_prompt has no {', '.join('{' + name + '}' for name in sorted(missing))}, "
                "so the judge would not see it"
            )

    def _verdict(self, prompt: str, pair: Sequence[str]) -> int:
        asked = self.system_prompt.format(prompt=prompt, response0=pair[0], response1=pair[1])
        said = self._ask(asked)
        return int(said) if said in ("0", "1") else FAILED

    def judge(
        self, prompts: list[str], completions: Pairs, shuffle_order: bool = True
    ) -> list[int]:
        """See `BasePairwiseJudge`; an answer that is neither 0 nor 1 is a failure.

        Raises:
            ValueError: for completions that are no pairs.
            Exception: whatever the client raises.
        """
        _require_pairs(prompts, completions)
        flips = _flips(len(prompts), shuffle_order)
        with ThreadPoolExecutor() as threads:
            found = list(threads.map(self._verdict, prompts, _flipped(completions, flips)))
        return [
            1 - place if flip and place != FAILED else place
            for place, flip in zip(found, flips, strict=True)
        ]


class HfPairwiseJudge(_PromptedJudge):
    """Asks a chat model behind Hugging Face's inference API.

    Args:
        model: its name on the hub, or the address of an endpoint.
        token: for the API.
        system_prompt: the question, with `{prompt}`, `{response0}` and `{response1}` in it; the
            answer is one token, `0` or `1`. None: `DEFAULT_PAIRWISE_SYSTEM_PROMPT`.

    Raises:
        ValueError: for a question that lacks one of these.
    """

    def __init__(
        self,
        model: str = "meta-llama/Meta-Llama-3-70B-Instruct",
        token: str | None = None,
        system_prompt: str | None = None,
    ) -> None:
        super().__init__(system_prompt)
        self.client = InferenceClient(model=model, token=token)

    def _ask(self, text: str) -> str | None:
        messages = [{"role": "user", "content": text}]
        return self.client.chat_completion(messages, max_tokens=1).choices[0].message.content


class OpenAIPairwiseJudge(_PromptedJudge):
    """Asks a model behind OpenAI's API.

    Args:
        model: its name.
        system_prompt: as of `HfPairwiseJudge`.
        max_requests: most requests; pairs beyond them are failures, which is said once. None: any
            number.

    Raises:
        ValueError: the package `openai` is not installed, or as `HfPairwiseJudge`.
    """

    def __init__(
        self,
        model: str = "gpt-4-turbo-preview",
        system_prompt: str | None = None,
        max_requests: int | None = 1_000,
    ) -> None:
        super().__init__(system_prompt)
        self.client = _required("openai", "openai", "OpenAIPairwiseJudge").OpenAI()
        self.model = model
        self.max_requests = max_requests
        self.num_requests = 0
        self._warned = False

    def _ask(self, text: str) -> str | None:
        messages = [{"role": "user", "content": text}]
        said = self.client.chat.completions.create(
            model=self.model, messages=messages, max_tokens=1
        )
        return said.choices[0].message.content

    def judge(
        self, prompts: list[str], completions: Pairs, shuffle_order: bool = True
    ) -> list[int]:
        """See `BasePairwiseJudge`."""
        _require_pairs(prompts, completions)
        count = len(prompts)
        if self.max_requests is not None:
            count = min(count, max(self.max_requests - self.num_requests, 0))
        if count < len(prompts) and not self._warned:
            self._warned = True
            warnings.warn(
                f"OpenAIPairwiseJudge has made its max_requests={self.max_requests} requests: what "
                "follows is not judged; give a higher number, or None",
                stacklevel=2,
            )
        self.num_requests += count
        found = super().judge(prompts[:count], completions[:count], shuffle_order)
        return found + [FAILED] * (len(prompts) - count)


class PairRMJudge(BasePairwiseJudge):
    """Asks the ranking model PairRM (arXiv 2306.02561) through the package `llm-blender`.

    Raises:
        ValueError: the package is not installed.
        RuntimeError: it cannot be imported beside this release of transformers.
    """

    def __init__(self) -> None:
        blender = _required("llm_blender", "llm-blender", "PairRMJudge")
        self.blender = blender.Blender()
        self.blender.loadranker("llm-blender/PairRM", device=Accelerator().device)

    def judge(
        self,
        prompts: list[str],
        completions: Pairs,
        shuffle_order: bool = True,
        return_scores: bool = False,
        temperature: float = 1.0,
    ) -> list[Any]:
        """See `BasePairwiseJudge`.

        Args:
            return_scores: give the probability that the first completion is better.
            temperature: the scores are divided by it for that.

        Raises:
            ValueError: for completions that are no pairs, or a temperature that is not positive.
        """
        _require_pairs(prompts, completions)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        flips = _flips(len(prompts), shuffle_order)
        shown = _flipped(completions, flips)
        found = self.blender.rank(prompts, shown, return_scores=return_scores, disable_tqdm=True)
        table = np.where(flips[:, None], np.asarray(found)[:, ::-1], found)
        if not return_scores:
            return (table[:, 0] - 1).astype(int).tolist()  # PairRM's ranks begin at 1
        margin = (table[:, 0] - table[:, 1]) / temperature
        return (0.5 * (1.0 + np.tanh(margin / 2))).tolist()  # the logistic function


def _required(module: str, package: str, needed_by: str) -> Any:
    """A package's module.

    Raises:
        ValueError: it is not installed.
        RuntimeError: importing it fails.
    """
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"{needed_by} needs a package that is missing: pip install {package}")
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever an old package finds changed around it
        import transformers

        raise RuntimeError(
            f"{needed_by}: {package} is installed but cannot be imported beside transformers "
            f"{transformers.__version__} ({type(error).__name__}: {error})"
        ) from error
