"""Progress and the latest metrics in the terminal, by rich."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

NOT_SHOWN = ("epoch", "total_flos")


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.4g}"


def _change(now: Any, before: Any) -> str:
    """An arrow where the value went, and by how much."""
    if not isinstance(now, int | float) or not isinstance(before, int | float) or now == before:
        return ""
    return f"{'▲' if now > before else '▼'} {abs(now - before):.2g}"


class RichProgressCallback(TrainerCallback):
    """A bar for training, one for evaluation, and a table of the metrics last logged.

    Metrics are grouped by what stands before their slash; the last column shows how each changed
    since the log before. Only the main process draws.

    Raises:
        ImportError: the package rich is missing.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("rich") is None:
            raise ImportError("RichProgressCallback needs the package rich: pip install rich")
        self._live: Any = None
        self._console: Console | None = None  # where to draw; None: standard output

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start drawing."""
        if not state.is_world_process_zero:
            return
        from rich.live import Live
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bars = Progress(
            TextColumn("[bold]{task.description:<10}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            expand=True,
        )
        self._training = self._bars.add_task(
            "training", total=state.max_steps, completed=state.global_step
        )
        self._evaluation: Any = None
        self._metrics: dict[str, Any] = {}
        self._before: dict[str, Any] = {}
        self._live = Live(self._view(), console=self._console, refresh_per_second=4)
        self._live.start()

    def _view(self) -> RenderableType:
        from rich.columns import Columns
        from rich.console import Group

        tables = [self._table(group) for group in self._groups()]
        return Group(self._bars, Columns(tables, padding=(1, 3))) if tables else self._bars

    def _groups(self) -> list[str]:
        return list(dict.fromkeys(key.rpartition("/")[0] for key in self._metrics))

    def _table(self, group: str) -> Table:
        from rich.table import Table

        table = Table(box=None, title=group or None, title_justify="left", show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", style="bold")
        table.add_column(style="dim")
        for key, value in self._metrics.items():
            if key.rpartition("/")[0] == group:
                name = key.rpartition("/")[2]
                table.add_row(name, _number(value), _change(value, self._before.get(key)))
        return table

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the training bar."""
        if self._live is not None:
            self._bars.update(self._training, completed=state.global_step)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Move the evaluation bar."""
        if self._live is None:
            return
        if self._evaluation is None:
            total = len(eval_dataloader) if has_length(eval_dataloader) else None
            self._evaluation = self._bars.add_task("evaluation", total=total)
        self._bars.advance(self._evaluation)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the evaluation bar away."""
        if self._live is not None and self._evaluation is not None:
            self._bars.remove_task(self._evaluation)
            self._evaluation = None

    on_predict = on_evaluate

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the metrics; those not in this log keep their last value."""
        if self._live is None or not logs:
            return
        for key, value in logs.items():
            if key not in NOT_SHOWN:
                self._before[key] = self._metrics.get(key)
                self._metrics[key] = value
        self._live.update(self._view())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw for the last time."""
        if self._live is not None:
            self._live.update(self._view())
            self._live.stop()
            if not self._live.console.is_terminal:
                self._live.console.line()  # rich ends the last line on terminals only
            self._live = None
