"""What TRL logged, on disk; and how far a run may be from it.

A case states under `like` an earlier one of its file, and only the columns that differ from it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tests.algos.online_parity.running import Case

FOLDER = Path(__file__).parent / "recorded"

# A number may be off by so much of TRL's size, and a size below FLOOR counts as FLOOR.
RELATIVE = 1e-4
FLOOR = 1e-2
# TRL does not count rewards that are none or came too late.
OURS = ("/invalid", "/timeouts")

Columns = dict[str, Any]  # metric, or `asked` -> values
Found = dict[str, Any]  # logs: metric -> values; asked: prompts of each generation


def _path(case: Case) -> Path:
    return FOLDER / f"{case.group}.json"


@cache
def _cases(path: Path) -> dict[str, Columns]:
    if not path.exists():
        return {}
    cases: dict[str, Columns] = {}
    for name, stated in json.loads(path.read_text())["cases"].items():
        whole = {**cases.get(stated.pop("like", None), {}), **stated}
        cases[name] = {key: column for key, column in whole.items() if column is not None}
    return cases


def read(case: Case) -> Found:
    """What was recorded of a case; KeyError if nothing was."""
    columns = dict(_cases(_path(case))[case.name])
    return {"asked": columns.pop("asked"), "logs": columns}


def write(case: Case, versions: dict[str, str], found: Found, order: list[str]) -> None:
    """Put a case into its file, where the cases stand in `order`."""
    path = _path(case)
    kept = _cases(path)
    kept[case.name] = {"asked": found["asked"]} | {
        key: [_rounded(value) for value in column] for key, column in found["logs"].items()
    }
    names = [name for name in order if name in kept]
    shorter = (",", ":")
    lines = [
        f"{json.dumps(name)}: {json.dumps(_shortest(name, names[:i], kept), separators=shorter)}"
        for i, name in enumerate(names)
    ]
    FOLDER.mkdir(exist_ok=True)
    head = f'{{"versions": {json.dumps(versions)}, "cases": {{\n'
    path.write_text(head + ",\n".join(lines) + "\n}}\n")


def _shortest(name: str, earlier: list[str], cases: dict[str, Columns]) -> Columns:
    """A case in terms of the earlier one that it shares most columns with."""
    own = cases[name]

    def shared(other: str) -> int:
        return sum(cases[other].get(key) == column for key, column in own.items())

    nearest = max(earlier, key=shared, default=None)
    if nearest is None or not shared(nearest):
        return own
    other = cases[nearest]
    gone = dict.fromkeys(other.keys() - own.keys())
    return {"like": nearest} | gone | {k: c for k, c in own.items() if other.get(k) != c}


def _rounded(value: float | None) -> float | None:
    if value is None:
        return None
    short = float(f"{value:.8g}")
    return int(short) if short == int(short) else short


def differences(got: Found, want: Found) -> list[str]:
    """Each metric that is not TRL's, with its worst step; empty if the runs agree."""
    said = []
    if got["asked"] != want["asked"]:
        said.append(f"prompts asked for: {got['asked']}, TRL: {want['asked']}")
    of_ours = {key for key in got["logs"] if key.endswith(OURS)}
    for key in sorted(want["logs"].keys() ^ (got["logs"].keys() - of_ours)):
        said.append(f"{key}: logged by {'TRL' if key in want['logs'] else 'fastrl'} alone")
    for key in want["logs"].keys() & got["logs"].keys():
        ours, theirs = got["logs"][key], want["logs"][key]
        if len(ours) != len(theirs):
            said.append(f"{key}: logged {len(ours)} times, TRL {len(theirs)} times")
            continue
        pairs = list(zip(ours, theirs, strict=True))
        off = [step for step, pair in enumerate(pairs) if not _agree(*pair)]
        if off:
            shown = ", ".join(f"{step + 1}: {pairs[step]}" for step in off[:3])
            said.append(f"{key}: {len(off)} of {len(pairs)} differ; (fastrl, TRL) at {shown}")
    return sorted(said)


def _agree(ours: float | None, theirs: float | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return abs(ours - theirs) <= RELATIVE * max(abs(theirs), FLOOR)
