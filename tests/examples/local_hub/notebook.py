"""Running a notebook as Jupyter would: its code cells one after the other, in one namespace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(path: Path) -> list[str]:
    return ["".join(c["source"]) for c in read(path)["cells"] if c["cell_type"] == "code"]


def run(path: Path) -> dict[str, Any]:
    """The names that its cells leave behind."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(code_cells(path)):
        exec(compile(source, f"{path.name}[{number}]", "exec"), names)
    return names
