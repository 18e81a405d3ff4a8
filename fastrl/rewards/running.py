"""Reward functions run on a batch: here, together on an event loop, or each in a process.

They are called as TRL calls them. What they return is checked, so that a score is a finite number
or is known not to be there, and why.
"""

from __future__ import annotations

import concurrent.futures
import functools
import inspect
import math
import reprlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastrl.rewards.answers import Log, outcomes
from fastrl.rewards.event_loop import EventLoop
from fastrl.rewards.outcome import TIMEOUT, Outcome, Timeout
from fastrl.rewards.workers import Worker, pack

_OURS = ("prompts", "completions", "trainer_state", "log_extra", "log_metric", "environments")
_TRL_DROPS = ("prompt", "completion", "completion_ids")
_Running = concurrent.futures.Future[list[Any]]


@dataclass(frozen=True)
class Scores:
    """What K functions say of B completions."""

    values: torch.Tensor  # (B, K) fp32 on the CPU, NaN where there is none
    timeouts: list[int]  # K: rows for which time ran out
    invalid: list[int]  # K: rows that have no score for another reason


def name_of(function: Callable[..., Any]) -> str:
    """The name in `rewards/<name>/mean`: the function's own, or its class where it has none."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine: an `async def`, also as `__call__` or in a partial."""
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(function, "__call__", None)  # noqa: B004  of an instance, not whether there is
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


class RewardFunctions:
    """Functions that score completions.

    Synchronous ones run in order on the calling thread. Asynchronous ones run at the same time,
    together on one event loop. With `timeout` each synchronous one runs in a worker process, all at
    the same time; only those with a true attribute `in_process` (reward models) stay here, and
    those come first wherever they stand, as ranks may have to run them in step.

    What they give to `log_extra` and `log_metric` is passed on once all are done, in their order.

    Args:
        functions: called with the keywords prompts, completions, completion_ids (lists of B),
            trainer_state, log_extra, log_metric, environments if there are any, and each further
            column of the data set. Each returns B numbers, None where there is no reward.
        timeout: seconds one call may take; None: any time. A function that takes longer scores
            `TIMEOUT` for all rows of that call and logs nothing; its worker is ended and another
            begun at the next call, so what it kept in memory is lost. A worker is sent copies of
            its arguments, so it cannot change the trainer's state.

    Raises:
        TypeError: for what is no function.
        ValueError: for no function, a timeout that is no positive number, or, with a timeout, a
            function that no other process can load.
    """

    def __init__(
        self, functions: Sequence[Callable[..., Any]], timeout: float | None = None
    ) -> None:
        self._functions = list(functions)
        if not self._functions:
            raise ValueError("functions: give at least one reward function")
        for place, function in enumerate(self._functions):
            if not callable(function) or isinstance(function, torch.nn.Module):
                raise TypeError(
                    f"functions[{place}] must be a function of completions, got "
                    f"{type(function).__name__}; a trainer's reward_funcs takes models as well"
                )
        if timeout is not None and not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be a positive number of seconds, got {timeout}")
        self._timeout = timeout
        self.names = [name_of(function) for function in self._functions]
        _warn_of_doubles(self.names)
        self._asynchronous = [k for k, f in enumerate(self._functions) if is_async(f)]
        rest = [k for k in range(len(self.names)) if k not in self._asynchronous]
        staying = [k for k in rest if getattr(self._functions[k], "in_process", False)]
        rest = [k for k in rest if k not in staying]
        self._here = staying + (rest if timeout is None else [])
        self._workers: dict[int, Worker] = {}
        if timeout is not None:
            self._workers = {k: Worker(self.names[k], self._functions[k], timeout) for k in rest}
        self._loop = EventLoop()
        self._called = self._warned = False

    def score(
        self,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[Any]],
        trainer_state: Any,
        log_extra: Callable[[str, list[Any]], None],
        log_metric: Callable[[str, float], None],
        environments: Sequence[Any] | None = None,
    ) -> Scores:
        """Call every function once.

        Args:
            prompts, completions: B texts or lists of messages each.
            completion_ids: B lists of token ids.
            columns: the data set's columns, B entries each; `prompt`, `completion` and
                `completion_ids` among them are left out.
            trainer_state: of the trainer.
            log_extra, log_metric: take (column, B values) and (name, number).
            environments: B, where there are any.

        Raises:
            ValueError, TypeError: for columns that do not fit, for what a function cannot take, and
                for what it returned if that is not one finite number or None for each completion.
            ValueError: if the first batch has no score at all; later that is a warning.
            RuntimeError: for a worker process that died, or an asynchronous function that does not
                let go of the event loop.
            Exception: whatever a function raises.
        """
        keywords = _keywords(columns, len(completions))
        keywords |= {
            "prompts": prompts,
            "completions": completions,
            "completion_ids": completion_ids,
            "trainer_state": trainer_state,
        }
        if environments is not None:
            keywords["environments"] = environments
        if not self._called:
            for name, function in zip(self.names, self._functions, strict=True):
                _require_bindable(name, function, [*keywords, "log_extra", "log_metric"])
        logs = [Log() for _ in self.names]
        found = self._run(keywords, logs)
        scores = _scores(found, len(completions))
        self._require_some(scores, prompts)
        for log in logs:
            log.replay(log_extra, log_metric)
        return scores

    def close(self) -> None:
        """End worker processes and the event loop; a later `score` begins them again."""
        for worker in self._workers.values():
            worker.close()
        self._loop.close()

    def _run(self, keywords: dict[str, Any], logs: list[Log]) -> list[list[Outcome]]:
        """K lists of B outcomes."""
        rows = len(keywords["completions"])
        found: dict[int, list[Outcome]] = {}
        running: _Running | None = None
        try:
            self._begin_workers(keywords)
            running = self._begin_async(keywords, logs)
            for k in self._here:
                found[k] = outcomes(self.names[k], self._call(k, keywords, logs), rows)
            for k, worker in self._workers.items():
                answer = worker.answer()
                found[k] = [TIMEOUT] * rows if answer is None else answer.outcomes
                if answer is not None:
                    logs[k] = answer.log
            if running is not None:
                found |= self._await_async(running, logs, rows)
        except BaseException:
            if running is not None:
                running.cancel()
            for worker in self._workers.values():
                if worker.busy:
                    worker.close()
            raise
        return [found[k] for k in range(len(self.names))]

    def _call(self, k: int, keywords: dict[str, Any], logs: list[Log]) -> Any:
        log = logs[k]
        return self._functions[k](**keywords, log_extra=log.extra, log_metric=log.metric)

    def _begin_workers(self, keywords: dict[str, Any]) -> None:
        if not self._workers:
            return
        packed = pack(keywords)
        for worker in self._workers.values():
            worker.start()
        for worker in self._workers.values():
            worker.call(packed)

    def _begin_async(self, keywords: dict[str, Any], logs: list[Log]) -> _Running | None:
        if not self._asynchronous:
            return None
        calls = [self._call(k, keywords, logs) for k in self._asynchronous]
        return self._loop.start(calls, self._timeout)

    def _await_async(
        self, running: _Running, logs: list[Log], rows: int
    ) -> dict[int, list[Outcome]]:
        returned = self._loop.wait(running, self._timeout)
        if returned is None:
            names = ", ".join(self.names[k] for k in self._asynchronous)
            raise RuntimeError(
                f"asynchronous reward functions ({names}): one of them kept the event loop for "
                f"itself beyond reward_timeout={self._timeout}; await what takes long, or define "
                "it without async, and it runs in a process of its own"
            )
        found = {}
        for k, given in zip(self._asynchronous, returned, strict=True):
            if given is TIMEOUT:
                logs[k] = Log()
                found[k] = [TIMEOUT] * rows
            else:
                found[k] = outcomes(self.names[k], given, rows)
        return found

    def _require_some(self, scores: Scores, prompts: Sequence[Any]) -> None:
        """Refuse a first batch without any score; warn once of later rows without one."""
        unscored = scores.values.isnan().all(1).nonzero().flatten().tolist()
        rows = len(prompts)
        if unscored and len(unscored) == rows and not self._called:
            tally = "; ".join(
                f"{name}: {none} None or NaN, {late} timeouts"
                for name, none, late in zip(
                    self.names, scores.invalid, scores.timeouts, strict=True
                )
            )
            raise ValueError(
                f"no reward function scored any of the first {rows} completions ({tally}); check "
                "that the functions understand the completions and the data set's columns"
            )
        self._called = True
        if unscored and not self._warned:
            self._warned = True
            warnings.warn(
                f"{len(unscored)} of {rows} completions have no score from any reward function, "
                f"the first to the prompt {reprlib.repr(prompts[unscored[0]])}; such rows do not "
                "count (this is said once)",
                stacklevel=3,
            )


def _warn_of_doubles(names: list[str]) -> None:
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        warnings.warn(
            f"several reward functions are called {', '.join(doubles)}, so their metrics are "
            "averaged under one name; give them a __name__ each",
            stacklevel=3,
        )


def require_free(columns: Iterable[str]) -> None:
    """Refuse columns of a data set that are called as what the trainer gives reward functions.

    Raises:
        ValueError: naming the column.
    """
    for name in columns:
        if name in _OURS:
            raise ValueError(
                f"the data set's column {name!r} has the name of an argument that reward functions "
                "are given by the trainer; rename it with rename_column"
            )


def _keywords(columns: Mapping[str, Sequence[Any]], rows: int) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    require_free(columns)
    for name, values in columns.items():
        if name in _TRL_DROPS:
            continue
        if len(values) != rows:
            raise ValueError(f"columns[{name!r}] has {len(values)} entries for {rows} completions")
        keywords[name] = values
    return keywords


def _require_bindable(name: str, function: Callable[..., Any], keywords: list[str]) -> None:
    """The function takes these keywords and needs no other."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C, without one
        return
    try:
        signature.bind(**dict.fromkeys(keywords))
    except TypeError as error:
        raise TypeError(
            f"reward function {name!r} cannot be called: {error}. It is given {', '.join(keywords)}"
            "; take those it does not need as **kwargs, and name data set columns as they are named"
        ) from error


def _scores(found: list[list[Outcome]], rows: int) -> Scores:
    values = torch.empty(rows, len(found), dtype=torch.float32)
    timeouts, invalid = [], []
    for k, column in enumerate(found):
        numbers = [math.nan if value is None else value for value in column]
        values[:, k] = torch.tensor(numbers, dtype=torch.float32)
        late = sum(isinstance(value, Timeout) for value in column)
        timeouts.append(late)
        invalid.append(int(values[:, k].isnan().sum()) - late)
    return Scores(values, timeouts, invalid)
