"""Tables on the console, and in Comet."""

from __future__ import annotations

import importlib
import importlib.util
import random
from collections.abc import Mapping, Sequence
from typing import Any

from fastrl.train.completion_log import readable


def _require_rich(name: str) -> None:
    if importlib.util.find_spec("rich") is None:
        raise ImportError(f"{name} needs the package rich: pip install rich")


def print_rich_table(df: Any) -> None:
    """Print a pandas DataFrame, a line between rows.

    Raises:
        ImportError: without the package rich.
    """
    _require_rich("print_rich_table")
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # as it is: in a str [brackets] are markup

    table = Table(show_lines=True)
    for name in df.columns:
        table.add_column(Text(str(name)))
    for row in df.itertuples(index=False):
        table.add_row(*(Text(str(cell)) for cell in row))
    Console().print(table)


def print_prompt_completions_sample(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    rewards: Mapping[str, Sequence[float]],
    advantages: Sequence[float] | None,
    step: int,
    num_samples: int | None = None,
    extra: Mapping[str, Sequence[Any]] | None = None,
) -> None:
    """Print prompts with their completions, rewards and advantages.

    Args:
        prompts, completions: texts, or conversations; one of each a row.
        rewards: name -> one number a row.
        advantages: one a row; None leaves the column out.
        step: in the title.
        num_samples: print as many, drawn by python's seed; None, or more than there are: all; 0 or
            fewer: none.
        extra: name -> one value a row, shown last.

    Raises:
        ImportError: without the package rich.
    """
    _require_rich("print_prompt_completions_sample")
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    if num_samples is not None and num_samples <= 0:
        return
    rows = list(range(len(prompts)))
    if num_samples is not None and num_samples < len(rows):
        rows = random.sample(rows, num_samples)
    numbers = dict(rewards) if advantages is None else {**rewards, "Advantage": advantages}
    table = Table(expand=True, show_lines=True)
    texts = {"Prompt": prompts, "Completion": completions}
    more = dict(extra or {})
    for name in (*texts, *numbers, *more):
        table.add_column(
            Text(name), justify="right" if name in numbers else "left", overflow="fold"
        )
    for row in rows:
        cells = [readable(column[row]) for column in texts.values()]
        cells += [f"{column[row]:.2f}" for column in numbers.values()]
        table.add_row(*cells, *(readable(column[row]) for column in more.values()))
    Console().print(Panel(table, title=f"Step {step}", expand=False))


def _running_comet() -> Any:
    """Comet's running experiment; None without one, or without the package."""
    if importlib.util.find_spec("comet_ml") is None:
        return None
    return importlib.import_module("comet_ml").get_running_experiment()


def get_comet_experiment_url() -> str | None:
    """Where Comet's running experiment can be looked at; None without one."""
    experiment = _running_comet()
    return None if experiment is None else experiment.url


def log_table_to_comet_experiment(name: str, table: Any) -> None:
    """Send a pandas DataFrame to Comet's running experiment, if there is one.

    Args:
        name: the table's file name there.
        table: the DataFrame.

    Raises:
        ModuleNotFoundError: without the package comet_ml.
    """
    if importlib.util.find_spec("comet_ml") is None:
        raise ModuleNotFoundError(
            "log_table_to_comet_experiment needs the package comet_ml: pip install comet_ml"
        )
    experiment = _running_comet()
    if experiment is not None:
        experiment.log_table(tabular_data=table, filename=name)
