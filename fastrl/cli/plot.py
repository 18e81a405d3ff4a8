"""`fastrl plot RUN`: the curves of a run, from its log.jsonl."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrl.legacy import closest
from fastrl.train.callbacks.log_file import NAME, read_log

if TYPE_CHECKING:
    from fastrl.cli.curves import Curve

HELP = "draw the curves of a run as PNG"
PANELS = 6
# What is drawn where no keys are asked for, in this order, then what else was logged.
FIRST = (
    "loss",
    "reward",
    "reward_std",
    "completions/mean_length",
    "frac_reward_zero_std",
    "rewards/margins",
    "rewards/accuracies",
    "accuracy",
    "margin",
    "mean_token_accuracy",
    "objective/kl",
    "kl",
    "entropy",
    "ppo/policy/entropy",
    "ppo/loss/value",
    "grad_norm",
    "learning_rate",
)
NEVER = ("step", "time", "epoch", "total_flos", "num_tokens", "num_input_tokens_seen")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run", type=Path, help="output folder of a run, or its log.jsonl")
    parser.add_argument("--keys", nargs="+", help=f"what to draw; default: {PANELS} that matter")
    parser.add_argument("--out", type=Path, help="file to write; default: curves.png in the run")


def _points(rows: Iterable[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """(steps, values) of the rows that have a number at this key; a step's last one counts."""
    found: dict[float, float] = {}
    for place, row in enumerate(rows, 1):
        value = row.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[row.get("step", place)] = value
    return list(found), list(found.values())


def _known(rows: list[dict[str, Any]]) -> list[str]:
    """Keys that hold a number in at least one row, as first met."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [key for key in keys if _points(rows, key)[0]]


def _evaluations(known: list[str], key: str) -> dict[str, str]:
    """What was evaluated on -> the key of that metric there: eval_<key>, or eval_<set>_<key>."""
    found = {}
    for name in known:
        if not name.startswith("eval_") or not name.endswith(key):
            continue
        middle = name.removeprefix("eval_").removesuffix(key)
        # `eval_aux_loss` is the evaluation of aux_loss, not of loss on a set called aux.
        if not middle:
            found["evaluation"] = name
        elif middle.endswith("_") and name.removeprefix("eval_") not in known:
            found[middle.removesuffix("_")] = name
    return found


def _choose(rows: list[dict[str, Any]]) -> list[str]:
    """The keys that matter most among those with a course; evaluations join their own panels."""
    known = _known(rows)
    drawn = [k for k in known if k not in NEVER and len(_points(rows, k)[0]) > 1]
    joined = {name for key in drawn for name in _evaluations(known, key).values()}
    timed = ("_runtime", "_per_second", "_flos")
    drawn = [k for k in drawn if k not in joined and not k.endswith(timed)]
    order = [*[k for k in FIRST if k in drawn], *[k for k in drawn if k not in FIRST]]
    return order[:PANELS]


def curves_of(path: Path, keys: list[str] | None = None) -> dict[str, Curve]:
    """Panel title -> curve, from a log.

    Args:
        path: a log.jsonl, or the folder it lies in.
        keys: what to draw; None: what matters most.

    Raises:
        ValueError: there is no log, nothing to draw, or a key that was never logged.
    """
    log = path / NAME if path.is_dir() else path
    if not log.is_file():
        raise ValueError(f"{log}: there is no such log")
    rows = read_log(log)
    known = _known(rows)
    for key in keys or ():
        if key not in known:
            raise ValueError(
                f"{log} has no numbers for {key!r}{closest(key, known)}; it has {known}"
            )
    chosen = keys or _choose(rows)
    if not chosen:
        raise ValueError(f"{log}: no number was logged twice")
    return {key: _curve(rows, known, key) for key in chosen}


def _curve(rows: list[dict[str, Any]], known: list[str], key: str) -> Curve:
    from fastrl.cli.curves import Curve

    places = _evaluations(known, key)
    return Curve(*_points(rows, key), {label: _points(rows, at) for label, at in places.items()})


def run(options: argparse.Namespace) -> int:
    """Draw and say where."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SystemExit("fastrl plot needs the package matplotlib: pip install matplotlib")
    from fastrl.cli.curves import save_curves

    try:
        curves = curves_of(options.run, options.keys)
    except ValueError as error:
        raise SystemExit(f"fastrl plot: {error}") from None
    folder = options.run if options.run.is_dir() else options.run.parent
    out = options.out or folder / "curves.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    save_curves(out, folder.resolve().name, curves)
    print(out)
    return 0
