"""Curves of several runs as bands: the mean over seeds, and one standard deviation to each side.

    python benchmark/plot.py 'runs/study/baseline-*' 'LoRA=runs/study/peft-*' --out figure.png

A run is a folder with a log.jsonl, as examples/scripts/ppo.py and the trainers write it. Runs whose
folders' names differ only in the seed at their end are one band; `label=` names it otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import groups
from matplotlib.axes import Axes

from fastrl.cli.curves import COLOURS, save_panels, smooth, style_panel
from fastrl.cli.plot import curves_of


@dataclass(frozen=True)
class Band:
    """Mean (n,) and standard deviation (n,) over runs at the steps (n,) that all of them logged."""

    steps: list[float]
    means: list[float]
    deviations: list[float] | None  # None: of a single run


def band(runs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Band:
    """The band of (steps, values) of each run.

    Raises:
        ValueError: the runs have no step in common.
    """
    by_step = [dict(zip(*run, strict=True)) for run in runs]
    steps = sorted(set.intersection(*(set(one) for one in by_step)))
    if not steps:
        raise ValueError("its runs have no logged step in common")
    pairs = [groups.spread([one[step] for one in by_step]) for step in steps]
    deviations = None if len(runs) == 1 else [deviation for _, deviation in pairs]
    return Band(steps, [mean for mean, _ in pairs], deviations)


def bands_of(
    runs: Mapping[str, Sequence[Path]], keys: Sequence[str] | None
) -> dict[str, dict[str, Band]]:
    """Key -> label -> band; without keys, the first few that every run has.

    Raises:
        ValueError: a run without a log or without one of the keys, or no key is in all of them.
    """
    wanted = list(keys) if keys else None
    curves = {
        label: [curves_of(folder, wanted) for folder in folders] for label, folders in runs.items()
    }
    everyone = [one for several in curves.values() for one in several]
    chosen = wanted or [key for key in everyone[0] if all(key in one for one in everyone)]
    if not chosen:
        raise ValueError("no number was logged by every run; name some with --keys")
    found: dict[str, dict[str, Band]] = {key: {} for key in chosen}
    for key in chosen:
        for label, several in curves.items():
            points = [(one[key].steps, one[key].values) for one in several]
            try:
                found[key][label] = band(points)
            except ValueError as error:
                raise ValueError(f"{label}, {key}: {error}") from None
    return found


def draw(
    axis: Axes, _: str, title: str, bands: Mapping[str, Band], reach: int, legend: bool
) -> None:
    """One panel: a line and a band a group, in colours that are the same in every panel."""
    for place, (label, one) in enumerate(bands.items()):
        colour = COLOURS[place % len(COLOURS)]
        means = smooth(one.means, reach)
        axis.plot(one.steps, means, color=colour, linewidth=1.8, label=label)
        if one.deviations is not None:
            around = list(zip(means, smooth(one.deviations, reach), strict=True))
            low, high = [m - d for m, d in around], [m + d for m, d in around]
            axis.fill_between(one.steps, low, high, color=colour, alpha=0.15, linewidth=0)
    style_panel(axis, title)
    if legend:
        axis.legend(frameon=False, fontsize=8)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, and say where and of how many seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN_GLOB", help="[label=]folder or pattern")
    parser.add_argument("--out", type=Path, required=True, help="the figure, e.g. figure.png")
    parser.add_argument("--keys", nargs="+", help="what to draw; default: what matters most")
    parser.add_argument("--titles", nargs="+", help="of the panels; default: the keys")
    parser.add_argument("--title", help="of the figure")
    parser.add_argument("--smooth", type=int, default=0, help="values averaged to each side")
    given = parser.parse_args(argv)
    if given.titles and len(given.titles) != len(given.keys or ()):
        parser.error(f"--titles has {len(given.titles)} names, --keys {len(given.keys or ())}")
    if given.smooth < 0:
        parser.error(f"--smooth {given.smooth} is less than 0")
    try:
        runs = groups.find(given.runs)
        bands = bands_of(runs, given.keys)
    except ValueError as error:
        raise SystemExit(f"plot: {error}") from None
    titles = given.titles or list(bands)
    panels = {
        title: partial(draw, title=title, bands=one, reach=given.smooth, legend=place == 0)
        for place, (title, one) in enumerate(zip(titles, bands.values(), strict=True))
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    note = "Seeds: " + ", ".join(f"{label} {len(folders)}" for label, folders in runs.items())
    save_panels(given.out, given.title or "Mean and standard deviation over seeds", panels, note)
    print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
