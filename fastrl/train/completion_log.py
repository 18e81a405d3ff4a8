"""Completions for people to read: printed, kept as parquet, sent to loggers as tables."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
from accelerate import Accelerator
from accelerate.utils import gather_object

from fastrl.train.experience import Text
from fastrl.train.online_config import OnlineConfig

FOLDER = "completions"
_MINUTES = 2  # between two commits to the hub
_WIDEST = 2000  # characters of a text that are printed


class CompletionLog:
    """The completions of the latest generation batch, of all processes.

    Args:
        args: what is shown.
        accelerator: gathers.
        names: those of the reward functions.
    """

    def __init__(self, args: OnlineConfig, accelerator: Accelerator, names: Sequence[str]) -> None:
        self._args = args
        self._accelerator = accelerator
        self._names = list(names)
        self._rows: deque[dict[str, Any]] = deque(maxlen=args.generation_batch_size)
        self._folder = Path(args.output_dir) / FOLDER
        self._sending = self._scheduler(getattr(args, "log_completions_hub_repo", None))

    def _scheduler(self, repo_id: str | None) -> Any:
        """What sends the tables to a data set on the hub, which it makes, every few minutes."""
        if repo_id is None or not self._accelerator.is_main_process:
            return None
        from huggingface_hub import CommitScheduler

        self._folder.mkdir(parents=True, exist_ok=True)
        return CommitScheduler(
            repo_id=repo_id,
            repo_type="dataset",
            private=self._args.hub_private_repo,
            folder_path=self._folder,
            every=_MINUTES,
            allow_patterns=["*.parquet"],
        )

    def add(
        self,
        prompts: list[Text],
        completions: list[Text],
        rewards: list[list[float]],
        advantages: list[float] | None,
        extra: Mapping[str, list[Any]],
    ) -> None:
        """Add a batch.

        Args:
            prompts, completions: of this process.
            rewards, advantages: of all processes; rewards a list for each completion; None where
                answers have no advantages.
            extra: columns of the user's, of this process.
        """
        if not self._args.log_completions:
            return
        columns = {"prompt": self.of_all(prompts), "completion": self.of_all(completions)}
        columns |= {name: [row[i] for row in rewards] for i, name in enumerate(self._names)}
        for name in sorted({name for names in self.of_all([list(extra)]) for name in names}):
            columns[name] = self.of_all(extra.get(name, [None] * len(prompts)))
        if advantages is not None:
            columns["advantage"] = advantages
        for values in zip(*columns.values(), strict=True):
            self._rows.append(dict(zip(columns, values, strict=True)))

    def columns(self, logged: Mapping[str, list[Any]], rows: int) -> dict[str, list[Any]]:
        """What reward functions gave to `log_extra`, one value a row; of several the last.

        Raises:
            ValueError: for a column that the table has already, with another number of values, or
                with values that parquet cannot hold in one column.
        """
        if not self._args.log_completions:
            return {}
        for name, values in logged.items():
            if name in ("step", "prompt", "completion", "advantage", *self._names):
                raise ValueError(f"log_extra({name!r}, …): the table has a column of that name")
            if not values or len(values) % rows:
                raise ValueError(
                    f"log_extra({name!r}, …): got {len(values)} values for {rows} completions; "
                    "give one each"
                )
            self._require_storable(name, values[-rows:])
        return {name: values[-rows:] for name, values in logged.items()}

    def _require_storable(self, name: str, values: list[Any]) -> None:
        """Try the column as `show` will write it, with the rows of before that stand above it."""
        import pandas as pd

        whole = [*(row.get(name) for row in self._rows), *values]
        try:
            pd.DataFrame({name: whole}).to_parquet(BytesIO())
        except (pa.ArrowException, TypeError, ValueError) as error:
            kinds = ", ".join(sorted({type(value).__name__ for value in whole}))
            raise ValueError(
                f"log_extra({name!r}, …): parquet cannot hold these values in one column ({kinds}: "
                f"{error}); give texts, numbers of one kind, or lists of them"
            ) from None

    def of_all(self, values: list[Any]) -> list[Any]:
        """The lists of all processes, one after the other."""
        return gather_object(values) if self._accelerator.num_processes > 1 else values

    def show(self, step: int) -> None:
        """Print, keep and send what was added last; the main process does."""
        args = self._args
        wanted = args.log_completions and self._accelerator.is_main_process
        if not wanted or not self._rows:
            return
        import pandas as pd

        names = dict.fromkeys(name for row in self._rows for name in row)
        table = pd.DataFrame(
            [{"step": step, **{name: row.get(name) for name in names}} for row in self._rows]
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        with nullcontext() if self._sending is None else self._sending.lock:
            table.to_parquet(self._folder / f"completions_{step:05d}.parquet")
        shown = table
        if args.log_unique_prompts:
            shown = table[~table["prompt"].astype(str).duplicated()]
        self._print(shown, step)
        self._send(shown)

    def _print(self, table: Any, step: int) -> None:
        from rich.console import Console
        from rich.panel import Panel
        from rich.table import Table

        most = self._args.num_completions_to_print
        rows = table if most is None else table.sample(min(most, len(table)), random_state=step)
        grid = Table(show_lines=True, expand=True)
        numbers = [name for name in (*self._names, "advantage") if name in table.columns]
        texts = [name for name in table.columns if name not in (*numbers, "step")]
        for name in texts:
            grid.add_column(name, overflow="fold")
        for name in numbers:
            grid.add_column(name, justify="right")
        for _, row in rows.iterrows():
            cells = [readable(row[name]) for name in texts]
            grid.add_row(*cells, *(f"{row[name]:.2f}" for name in numbers))
        Console().print(Panel(grid, title=f"step {step}", expand=False))

    def _send(self, table: Any) -> None:
        report_to = self._args.report_to or []
        for name in ("wandb", "trackio"):
            if name not in report_to:
                continue
            module = __import__(name)
            if name == "wandb" and module.run is None:
                continue
            module.log({"completions": module.Table(dataframe=table.astype({"prompt": str}))})


def readable(text: Any) -> Any:
    """A cell: a text, cut where it is very long, or the messages of a conversation."""
    from rich.text import Text as Cell

    if isinstance(text, list) and all(isinstance(part, dict) for part in text):
        text = "\n".join(f"{part.get('role')}: {part.get('content')}" for part in text)
    text = str(text)
    return Cell(text if len(text) <= _WIDEST else f"{text[:_WIDEST]} …")
