"""Record what TRL 1.16 says of the cases: run this where it is installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    import reward_cases
    import trl.rewards

    found = {name: reward_cases.answer(trl.rewards, name) for name in reward_cases.CASES}
    (HERE / "trl_1_16.json").write_text(json.dumps(found, indent=1) + "\n")
