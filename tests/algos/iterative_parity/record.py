"""Records what TRL 0.7.11 makes of the cases; run it with that library's Python, from the root:

python tests/algos/iterative_parity/record.py
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("ACCELERATE_USE_CPU", "true")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
import trl

from iterative_parity.cases import CASES, run_case

RECORDED = Path(__file__).resolve().parents[2] / "fixtures" / "iterative_sft.json"

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
found = {case.name: run_case(case, trl) for case in CASES}
versions = {m.__name__: m.__version__ for m in (trl, torch, transformers)}
RECORDED.write_text(json.dumps({"versions": versions, "cases": found}) + "\n")
print(f"recorded {', '.join(found)}")
