"""Records what TRL makes of the cases, with that library's Python and diffusers 0.26.3:

python tests/algos/ddpo_parity/record.py DDPO        # TRL 0.7.11
python tests/algos/ddpo_parity/record.py AlignProp   # TRL 0.11.4
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("ACCELERATE_USE_CPU", "true")
ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests" / "algos"), str(ROOT / "examples" / "scripts")]

import diffusers  # noqa: E402
import tiny_pipeline  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402

from ddpo_parity.cases import CASES, run_case  # noqa: E402

RECORDED = ROOT / "tests" / "fixtures" / "ddpo.json"

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
wanted = [case for case in CASES if case.algorithm == sys.argv[1]]
with tempfile.TemporaryDirectory() as folder:
    tiny_pipeline.save(Path(folder))
    found = {case.name: run_case(case, trl, Path(folder)) for case in wanted}
record = json.loads(RECORDED.read_text()) if RECORDED.exists() else {"versions": {}, "cases": {}}
record["versions"][sys.argv[1]] = {
    m.__name__: m.__version__ for m in (trl, torch, transformers, diffusers)
}
record["cases"].update(found)
RECORDED.write_text(json.dumps(record) + "\n")
print(f"recorded {', '.join(found)}")
