"""Record what TRL 1.16 logs.

PYTHONPATH=. <python with trl> -m tests.algos.online_parity.record [how a case's name begins ...]

`--ranks` records the runs on two ranks, all of them.

`--noise` writes nothing and says how far TRL is from the record when it pads to multiples of 8:
what is left there no other order of the same sums can beat.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.algos.online_parity import cases, distilled, making, ranks, records, running


def give(trainer: Any, script: making.Script) -> None:
    """Put the script in the place of TRL's generation."""
    trainer._generate_single_turn = lambda ids, *_: script.answers(ids, trainer)[0]


def claim(trainer: Any) -> None:
    """Let TRL believe that vLLM samples; none is installed, so its argument cannot be set."""
    trainer.use_vllm = True
    trainer.vllm_generation = SimpleNamespace(sync_weights=lambda: None)
    trainer._last_loaded_step = -1


def two_ranks(versions: dict[str, str]) -> None:
    """Keep what each case logs on two ranks."""
    with tempfile.TemporaryDirectory() as folder:
        found = ranks.start("trl", Path(folder), timeout=600)
    for case in cases.RANKS:
        print(case.name, found[case.name].get("error", ""), flush=True)
        records.write(case, versions, found[case.name], [case.name for case in cases.RANKS])


def main(wanted: list[str]) -> None:
    """Run the named cases, or all, and keep what each logs."""
    import transformers
    import trl

    torch.set_num_threads(1)
    noise = "--noise" in wanted
    wanted = [start for start in wanted if start != "--noise"]
    versions = {
        "trl": trl.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    if "--ranks" in wanted:
        two_ranks(versions)
        return
    everything = [*cases.ALL, *distilled.ALL]
    for case in everything:
        if wanted and not any(case.name.startswith(start) for start in wanted):
            continue
        started = time.monotonic()
        if noise:
            case = dataclasses.replace(case, config={**case.config, "pad_to_multiple_of": 8})
        found = running.run(case, trl, give, claim)
        said = records.differences(found, records.read(case)) if noise else []
        if not noise:
            records.write(case, versions, found, [case.name for case in everything])
        print(case.name, f"{time.monotonic() - started:.1f} s", *said[:3], sep="\n    ", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
