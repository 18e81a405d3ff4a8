"""Records what TRL packs of the rows in packing_cases.py.

Run by the Python of the peer (trl 1.16.0): python tests/data/record_packing.py
"""

from __future__ import annotations

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import packing_cases as cases
import trl
from preparation_cases import FIXTURES

recorded = {name: cases.packed(trl.pack_dataset, name, streamed=False) for name in cases.SHAPES}
(FIXTURES / "packing.json").write_text(
    json.dumps({"peer": f"trl {trl.__version__}", "cases": recorded}, indent=1) + "\n"
)
