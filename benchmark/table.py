"""What several runs came to, as a Markdown table: mean ± standard deviation over seeds.

    python benchmark/table.py 'runs/study/baseline-*' 'LoRA=runs/study/peft-*' --keys "after/reward"

A run is a folder with a summary.json, as examples/scripts/ppo.py writes it; `after/reward` is what
it has under "after", "reward". Runs are grouped as in plot.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import groups

from fastrl.legacy import closest


def flat(summary: Mapping[str, Any], above: str = "") -> dict[str, float]:
    """The numbers of a nested summary, their names joined by slashes."""
    found: dict[str, float] = {}
    for name, value in summary.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{name}/")
        elif isinstance(value, int | float):
            found[f"{above}{name}"] = float(value)
    return found


def read(folder: Path, keys: Sequence[str]) -> list[float]:
    """The run's numbers for the keys.

    Raises:
        ValueError: it has no summary, or none of that name.
    """
    file = folder / "summary.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no summary.json: it has not ended, or failed")
    numbers = flat(json.loads(file.read_text()))
    for key in keys:
        if key not in numbers:
            raise ValueError(f"{file} has no number {key!r}{closest(key, numbers)}")
    return [numbers[key] for key in keys]


def cell(values: Sequence[float]) -> str:
    """Mean ± standard deviation, to three digits after the point, or one where it is large."""
    mean, deviation = groups.spread(values)
    digits = 1 if abs(mean) >= 30 else 3
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def table(
    runs: Mapping[str, Sequence[Path]], keys: Sequence[str], heads: Sequence[str] | None = None
) -> str:
    """A line a group, a column a key, the number of seeds at the end."""
    lines = [f"| | {' | '.join(heads or keys)} | seeds |", "|---" * (len(keys) + 2) + "|"]
    for label, folders in runs.items():
        columns = zip(*(read(folder, keys) for folder in folders), strict=True)
        cells = [label, *map(cell, columns), str(len(folders))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN_GLOB", help="[label=]folder or pattern")
    parser.add_argument("--keys", nargs="+", required=True, help="numbers of summary.json")
    parser.add_argument("--heads", nargs="+", help="of the columns; default: the keys")
    given = parser.parse_args(argv)
    if given.heads and len(given.heads) != len(given.keys):
        parser.error(f"--heads has {len(given.heads)} names, --keys {len(given.keys)}")
    try:
        print(table(groups.find(given.runs), given.keys, given.heads))
    except ValueError as error:
        raise SystemExit(f"table: {error}") from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
