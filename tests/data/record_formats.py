"""Records what TRL 1.16 makes of every case: `python tests/data/record_formats.py` with it."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent


def brief(value: object) -> object:
    """Long outputs as their hash, to keep the file small."""
    written = json.dumps(value, sort_keys=True)
    if len(written) <= 80:
        return value
    return {"sha": hashlib.sha256(written.encode()).hexdigest()[:16]}


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    import trl
    from format_cases import outputs

    recorded = {"trl": trl.__version__, "outputs": {k: brief(v) for k, v in outputs(trl).items()}}
    path = HERE / "fixtures" / "formats.json"
    path.write_text(json.dumps(recorded, indent=0, sort_keys=True, ensure_ascii=False) + "\n")
    print(f"{len(recorded['outputs'])} outputs, {path.stat().st_size} bytes")
