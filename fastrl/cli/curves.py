"""Training curves as a figure: one small panel a statistic. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INK = "#1f2933"
FAINT = "#d5dbe1"
COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2")
MARKS = ("o", "s", "^", "D")  # of evaluations, and how a title shows them
MARK_SIGNS = ("●", "■", "▲", "◆")
FEW = 12  # points: drawn as they are, with marks


@dataclass(frozen=True)
class Curve:
    """Values (n,) of a statistic at steps (n,), and those of evaluations if there are any."""

    steps: Sequence[float]
    values: Sequence[float]
    # what was evaluated on -> its steps and values
    evaluated: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """Centred mean over `2 * reach + 1` values, over fewer at the ends; as long as the input."""
    means = []
    for place in range(len(values)):
        near = min(reach, place, len(values) - 1 - place)
        around = values[place - near : place + near + 1]
        means.append(sum(around) / len(around))
    return means


def draw_panel(axis: plt.Axes, colour: str, name: str, curve: Curve) -> None:
    """Draw one statistic: every value faintly, its moving mean on top, evaluations as dots."""
    steps, values = curve.steps, curve.values
    if len(values) <= FEW:
        axis.plot(steps, values, color=colour, linewidth=2.0, marker="o", markersize=3.5)
    else:
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=1.0)
        axis.plot(steps, smooth(values, max(1, len(values) // 25)), color=colour, linewidth=2.0)
    for mark, points in zip(MARKS, curve.evaluated.values(), strict=False):
        axis.plot(*points, color=INK, linewidth=1.2, linestyle=":", marker=mark, ms=4)
    if curve.evaluated:
        shown = zip(MARK_SIGNS, curve.evaluated, strict=False)
        name += f" ({', '.join(f'{sign} {label}' for sign, label in shown)})"
    style_panel(axis, name)


def style_panel(axis: plt.Axes, name: str) -> None:
    """Give a panel its title and the plain look of all of them."""
    axis.set_title(name, loc="left", fontsize=11, color=INK, pad=8)
    axis.grid(axis="y", color=FAINT, linewidth=0.6)
    axis.tick_params(colors=INK, labelsize=9, length=0)
    axis.margins(x=0.02)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(FAINT)


def save_curves(
    path: Path,
    title: str,
    curves: Mapping[str, Curve | Sequence[float]],
    note: str = "",
    axis_label: str = "step",
) -> None:
    """Save statistics as a figure of two panels a row.

    Args:
        path: the file to write, of a kind matplotlib knows by its ending; its folder must exist.
        title: heading of the figure.
        curves: panel title -> curve, or one value a step from step 1 on.
        note: a line under the heading, e.g. the scores before and after.
        axis_label: what the steps are.
    """
    drawn = {}
    for name, curve in curves.items():
        whole = curve if isinstance(curve, Curve) else Curve(range(1, len(curve) + 1), curve)
        drawn[name] = partial(draw_panel, name=name, curve=whole)
    save_panels(path, title, drawn, note, axis_label)


def save_panels(
    path: Path,
    title: str,
    panels: Mapping[str, Callable[[plt.Axes, str], None]],
    note: str = "",
    axis_label: str = "step",
) -> None:
    """Save a figure of two panels a row, each drawn by a function of its axes and its colour.

    The other arguments are those of `save_curves`.
    """
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.5 * columns, 0.6 + 2.6 * rows), squeeze=False, sharex=True,
        layout="constrained",
    )  # fmt: skip
    heading = f"{title}\n" if note else title
    figure.suptitle(heading, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    if note:
        top = 1 - 0.435 / figure.get_figheight()
        figure.text(0.01, top, note, ha="left", va="bottom", fontsize=10, color=INK)
    for place, draw in enumerate(panels.values()):
        draw(axes.flat[place], COLOURS[place % len(COLOURS)])
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for column in range(columns):
        lowest = axes[(len(panels) - 1 - column) // columns][column]
        lowest.set_xlabel(axis_label, fontsize=9, color=INK)
        lowest.tick_params(labelbottom=True)
    figure.savefig(path, dpi=110, facecolor="white")
    plt.close(figure)
