"""Records what TRL 0.7's collator and packed stream make of the rows in legacy_cases.py.

Run by the Python of the peer (trl 0.7.11): python tests/data/record_legacy.py
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import legacy_cases as cases
from trl import DataCollatorForCompletionOnlyLM
from trl.trainer import ConstantLengthDataset

warnings.simplefilter("ignore")
FIXTURES = Path(__file__).parent / "fixtures"
tokenizer = cases.load_tokenizer()
recorded = {
    "peer": "trl 0.7.11",
    "labels": cases.masked(DataCollatorForCompletionOnlyLM, tokenizer),
    "streams": cases.streamed(ConstantLengthDataset, tokenizer),
}
(FIXTURES / "legacy.json").write_text(json.dumps(recorded) + "\n")
