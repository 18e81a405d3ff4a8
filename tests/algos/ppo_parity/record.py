"""Run parity cases and write what came out.

In an environment with TRL 0.7.11 (torch 2.13.0, numpy<2, transformers 4.38.2, accelerate 0.27.2,
peft 0.8.2), from the root of the repository:

    python tests/algos/ppo_parity/record.py --out tests/fixtures/ppo
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 \\
        tests/algos/ppo_parity/record.py --two-processes --out tests/fixtures/ppo

Each case becomes `<name>.json` (statistics of every step) and `<name>.npz` (final weights of what
moved); with two processes `<name>.rank<r>.json`, and the weights are rank 0's. `--library fastrl`
writes the same files from fastrl, `--double` runs the models in fp64. One thread, so that a
recording can be repeated. Two folders are compared by

    python tests/algos/ppo_parity/compare.py <ours> <theirs>
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("ACCELERATE_USE_CPU", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import transformers

from ppo_parity.cases import CASES, TWO_PROCESS_CASES, Case
from ppo_parity.running import (
    ARRAYS,
    BY_TOKEN,
    Outcome,
    response_values,
    run_case,
    scalars,
)


def as_json(case: Case, outcome: Outcome, rank: int, versions: dict[str, str]) -> dict:
    """The statistics of a run in plain JSON; of the arrays, what padding cannot change."""
    steps = []
    for number, stats in enumerate(outcome.steps):
        arrays = {k: np.asarray(stats[k], dtype=np.float64).tolist() for k in ARRAYS}
        for key in BY_TOKEN:
            values = response_values(case, number, rank, stats[key])
            arrays[key] = [round(value, 6) for value in values]
        sizes = {k: int(np.size(stats[k])) for k in ("ppo/policy/advantages", "ppo/policy/ratio")}
        steps.append({"scalars": scalars(stats), "arrays": arrays, "sizes": sizes})
    digest = hashlib.sha256(b"".join(value.tobytes() for value in outcome.end.values())).hexdigest()
    return {
        "versions": versions,
        "keys": outcome.keys,
        "draws": outcome.draws,
        "digest": digest,
        "steps": steps,
    }


def write(case: Case, outcome: Outcome, out: Path, versions: dict[str, str], rank: int) -> None:
    """Write a run's files; with several processes each rank its statistics, rank 0 the weights."""
    suffix = f".rank{rank}" if case.num_processes > 1 else ""
    text = json.dumps(as_json(case, outcome, rank, versions), separators=(",", ":"))
    (out / f"{case.name}{suffix}.json").write_text(text + "\n")
    if rank == 0:
        changed = {k: v for k, v in outcome.end.items() if not np.array_equal(v, outcome.start[k])}
        np.savez_compressed(out / f"{case.name}.npz", **changed)


def main() -> None:
    """Parse the command line and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--library", default="trl", choices=("trl", "fastrl"))
    parser.add_argument("--case", action="append", help="only these; may be given several times")
    parser.add_argument("--two-processes", action="store_true")
    parser.add_argument("--double", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    sys.path.append(str(Path(__file__).resolve().parents[3]))  # a checkout that is not installed
    library = importlib.import_module(arguments.library)
    versions = {
        arguments.library: library.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    rank = int(os.environ.get("RANK", "0"))
    for case in TWO_PROCESS_CASES if arguments.two_processes else CASES:
        if arguments.case and case.name not in arguments.case:
            continue
        outcome = run_case(case, library, arguments.double)
        write(case, outcome, arguments.out, versions, rank)
        if rank == 0:
            print(f"recorded {case.name}", flush=True)
    if arguments.two_processes:
        leave()


def leave() -> None:
    """End a rank without running the exit handlers, at which gloo sometimes aborts."""
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
