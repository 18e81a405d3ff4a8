"""Records what TRL's collators make of the rows in collation_cases.py.

Run by the Python of the peer (trl 1.16.0): python tests/data/record_collation.py
"""

from __future__ import annotations

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import collation_cases as cases
import trl
from preparation_cases import FIXTURES
from trl.trainer import dpo_trainer, kto_trainer, reward_trainer, sft_trainer

made = cases.batches(
    sft_trainer.DataCollatorForLanguageModeling,
    dpo_trainer.DataCollatorForPreference,
    kto_trainer.DataCollatorForUnpairedPreference,
    reward_trainer.DataCollatorForPreference,
)
lines = [f"{json.dumps(name)}: {json.dumps(cases.plain(batch))}" for name, batch in made.items()]
text = ",\n".join(lines)
(FIXTURES / "collation.json").write_text(
    f'{{"peer": "trl {trl.__version__}", "batches": {{\n{text}\n}}}}\n'
)
