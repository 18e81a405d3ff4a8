"""Record what TRL 1.16 logs.

PYTHONPATH=. <python with trl> -m tests.algos.offline_parity.record [how a case's name begins ...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.algos.offline_parity import cases, running

FOLDER = Path(__file__).parent / "recorded"


def versions() -> dict[str, str]:
    """Of what the numbers come from."""
    import transformers
    import trl

    modules = {"trl": trl, "transformers": transformers, "torch": torch}
    return {name: module.__version__ for name, module in modules.items()}


def record(which: Sequence[running.Case], library: Any, folder: Path, wanted: list[str]) -> None:
    """Run those of the cases whose names begin so, or all, and write one file each."""
    torch.set_num_threads(1)
    for case in which:
        if wanted and not any(case.name.startswith(start) for start in wanted):
            continue
        logs = running.run(case, library)
        columns = {
            key: [entry[key] for entry in logs if key in entry] for entry in logs for key in entry
        }
        folder.mkdir(exist_ok=True)
        path = folder / f"{case.name}.json"
        path.write_text(json.dumps({"versions": versions(), "logs": columns}) + "\n")
        print(case.name, len(logs), columns["loss"][0], columns["loss"][-1], flush=True)


if __name__ == "__main__":
    import trl

    record(cases.ALL, trl, FOLDER, sys.argv[1:])
