"""Record what TRL's callbacks make of the walk: python record.py (with trl 1.16.0 installed)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import trl  # noqa: E402
from accelerate import Accelerator  # noqa: E402

from callbacks_parity.walk import BEMA_CASES, SYNC_CASES, bema, sync  # noqa: E402

if __name__ == "__main__":
    Accelerator(cpu=True)
    found = {
        "trl": trl.__version__,
        "bema": {name: bema(trl.BEMACallback, options) for name, options in BEMA_CASES.items()},
        "sync": {name: sync(trl.SyncRefModelCallback, *case) for name, case in SYNC_CASES.items()},
    }
    path = HERE.parents[1] / "fixtures" / "callbacks" / "trl_1_16.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(path, found["trl"])
