"""Training curves for the examples: one small panel a statistic, saved as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INK = "#1f2933"
FAINT = "#d5dbe1"
COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea")


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """Centred mean over `2 * reach + 1` values, over fewer at the ends; as long as the input."""
    means = []
    for place in range(len(values)):
        near = min(reach, place, len(values) - 1 - place)
        around = values[place - near : place + near + 1]
        means.append(sum(around) / len(around))
    return means


def draw_panel(axis: plt.Axes, name: str, values: Sequence[float], colour: str) -> None:
    """Draw one statistic: every step faintly, its moving mean on top."""
    steps = range(1, len(values) + 1)
    axis.plot(steps, values, color=colour, alpha=0.25, linewidth=1.0)
    axis.plot(steps, smooth(values, max(1, len(values) // 25)), color=colour, linewidth=2.0)
    axis.set_title(name, loc="left", fontsize=11, color=INK, pad=8)
    axis.grid(axis="y", color=FAINT, linewidth=0.6)
    axis.tick_params(colors=INK, labelsize=9, length=0)
    axis.margins(x=0.02)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(FAINT)


def save_curves(
    path: Path, title: str, curves: Mapping[str, Sequence[float]], note: str = ""
) -> None:
    """Save up to four statistics as a 2 x 2 figure.

    Args:
        path: the PNG to write; its folder must exist.
        title: heading of the figure.
        curves: panel title -> one value a PPO step.
        note: a line under the heading, e.g. the scores before and after.
    """
    figure, axes = plt.subplots(2, 2, figsize=(9.0, 5.8), sharex=True, layout="constrained")
    heading = f"{title}\n" if note else title
    figure.suptitle(heading, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    if note:
        figure.text(0.01, 0.925, note, ha="left", va="bottom", fontsize=10, color=INK)
    for axis, (name, values), colour in zip(axes.flat, curves.items(), COLOURS, strict=True):
        draw_panel(axis, name, values, colour)
    for axis in axes[1]:
        axis.set_xlabel("PPO step", fontsize=9, color=INK)
    figure.savefig(path, dpi=110, facecolor="white")
    plt.close(figure)
