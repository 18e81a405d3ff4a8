"""Record what TRL 0.28 logs.

PYTHONPATH=. <python with trl 0.28, scikit-learn> -m tests.algos.bco_prm_parity.record [names ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from tests.algos.bco_prm_parity import cases, running

FOLDER = Path(__file__).parent / "recorded"


def main(wanted: list[str]) -> None:
    """Run the cases that a name begins, or all, and write one file each."""
    import sklearn
    import transformers
    import trl
    from trl.experimental import bco, prm

    torch.set_num_threads(1)
    library = SimpleNamespace(**vars(bco), **{k: v for k, v in vars(prm).items() if "PRM" in k})
    modules = {"trl": trl, "transformers": transformers, "torch": torch, "scikit-learn": sklearn}
    versions = {name: module.__version__ for name, module in modules.items()}
    for case in cases.ALL:
        if wanted and not any(case.name.startswith(start) for start in wanted):
            continue
        logs = running.run(case, library)
        columns = {
            key: [entry[key] for entry in logs if key in entry] for entry in logs for key in entry
        }
        path = FOLDER / f"{case.name}.json"
        path.write_text(json.dumps({"versions": versions, "logs": columns}) + "\n")
        print(case.name, len(logs), columns["loss"][0], columns["loss"][-1], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
