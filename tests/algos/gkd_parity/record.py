"""Record what TRL 1.16 logs.

PYTHONPATH=. <python with trl> -m tests.algos.gkd_parity.record
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.algos.gkd_parity import running

FILE = Path(__file__).parent / "recorded.json"


def main() -> None:
    """Run all cases and write one file."""
    import transformers
    import trl
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    torch.set_num_threads(1)
    versions = {part.__name__: part.__version__ for part in (trl, transformers, torch)}
    found = {case.name: running.run(case, GKDTrainer, GKDConfig) for case in running.CASES}
    FILE.write_text(json.dumps({"versions": versions, "logs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
