"""Record what TRL 1.16 logs.

PYTHONPATH=. <python with trl> -m tests.algos.offline_parity.record [how a case's name begins ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tests.algos.offline_parity import cases, running

FOLDER = Path(__file__).parent / "recorded"


def main(wanted: list[str]) -> None:
    """Run the named cases, or all, and write one file each."""
    import transformers
    import trl

    torch.set_num_threads(1)
    versions = {
        "trl": trl.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    for case in cases.ALL:
        if wanted and not any(case.name.startswith(start) for start in wanted):
            continue
        logs = running.run(case, trl)
        columns = {
            key: [entry[key] for entry in logs if key in entry] for entry in logs for key in entry
        }
        FOLDER.mkdir(exist_ok=True)
        path = FOLDER / f"{case.name}.json"
        path.write_text(json.dumps({"versions": versions, "logs": columns}) + "\n")
        print(case.name, len(logs), columns["loss"][0], columns["loss"][-1], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
