"""How long a block or a method of a trainer takes, told to the loggers of its run."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Collection
from typing import Any, Self, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


class ProfilingContext:
    """Time a `with` block and log the seconds to the loggers that have a run going.

    Args:
        name: of the block.
        report_to: loggers by name; "wandb", "mlflow" and "trackio" are told, each once a program
            has imported it.
        is_main_process: only this one tells.
        step: the step that the seconds belong to; Weights & Biases counts its own.
        metric_prefix: stands before the name, with a colon between.
    """

    def __init__(
        self,
        name: str,
        report_to: Collection[str],
        is_main_process: bool = True,
        step: int | None = None,
        metric_prefix: str = "profiling/Time taken",
    ) -> None:
        self.name = name
        self.report_to = report_to
        self.is_main_process = is_main_process
        self.step = step
        self.metric_prefix = metric_prefix

    def __enter__(self) -> Self:
        """Start the clock."""
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: Any) -> None:
        """Log the seconds, of a block that failed too."""
        seconds = time.perf_counter() - self._start
        if self.is_main_process:
            self._log({f"{self.metric_prefix}: {self.name}": seconds})

    def _log(self, metrics: dict[str, float]) -> None:
        loggers: dict[str, Any] = {name: sys.modules.get(name) for name in self.report_to}
        if loggers.get("wandb") is not None and loggers["wandb"].run is not None:
            loggers["wandb"].log(metrics)
        if loggers.get("mlflow") is not None and loggers["mlflow"].active_run() is not None:
            loggers["mlflow"].log_metrics(metrics, step=self.step)
        if loggers.get("trackio") is not None:
            loggers["trackio"].log(metrics, step=self.step)


def profiling_context(trainer: Any, name: str) -> ProfilingContext:
    """A context that times a block of a trainer's, logged as `<class of the trainer>.<name>`.

    Args:
        trainer: a trainer; its loggers, process and step are used.
        name: of the block.
    """
    return ProfilingContext(
        f"{type(trainer).__name__}.{name}",
        trainer.args.report_to,
        trainer.accelerator.is_main_process,
        trainer.state.global_step,
    )


def profiling_decorator(func: _Function) -> _Function:
    """Decorator of a trainer's method: each call is timed under the method's name."""

    @functools.wraps(func)
    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        with profiling_context(self, func.__name__):
            return func(self, *args, **kwargs)

    return timed  # type: ignore[return-value]
