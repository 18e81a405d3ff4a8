"""One rank of the runs on two: torchrun … ranks.py LIBRARY FOLDER; writes FOLDER/<case>.json.

`start` launches both ranks. LIBRARY is trl or fastrl.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests import two_ranks


def start(library: str, folder: Path, timeout: float) -> dict[str, Any]:
    """Run every case of `cases.RANKS` on two ranks of this interpreter.

    Returns:
        for each case what `running.run` found, `asked` a list of both ranks'; or {"error": why}.
    """
    said = two_ranks.start(__file__, library, folder, timeout=timeout)
    found = {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}
    assert found, said
    return found


def main() -> None:
    """Run all cases as this rank."""
    from tests.algos.online_parity import cases, making, record, running

    library, place = sys.argv[1:]
    hooks = (making.give_completions, making.claim_engine)
    if library == "trl":
        hooks = (record.give, record.claim)
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    module = importlib.import_module(library)
    for case in cases.RANKS:
        try:
            found = running.run_in(Path(place, case.name), case, module, *hooks)
        except Exception:
            found = {"error": traceback.format_exc()}
        assert dist.is_initialized() and dist.get_world_size() == world == 2
        several: list[Any] = [None] * world
        dist.all_gather_object(several, found)
        if rank == 0:
            wrong = next((one for one in several if "error" in one), None)
            asked = [one.get("asked") for one in several]
            kept = wrong or found | {"asked": asked}
            Path(place, f"{case.name}.json").write_text(json.dumps(kept))
    two_ranks.leave()


if __name__ == "__main__":
    main()
