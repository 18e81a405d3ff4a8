"""Record what TRL's later `PPOTrainer` logs, from the root of the repository:

    python -m tests.algos.ppo_train_parity.record [case …]
    PYTHONPATH=. ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 \\
        tests/algos/ppo_train_parity/record.py two_ranks

in an environment with TRL 0.24.0 (transformers 4.57.3, torch 2.13.0), and `mini_batches`, whose
batch TRL has defined otherwise since, in one with TRL 0.15.2. One thread.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import transformers
import trl

from tests.algos.ppo_train_parity.cases import CASES, TWO_RANKS
from tests.algos.ppo_train_parity.running import BATCHES, prompts, rows_of_a_batch, run

FOLDER = Path(__file__).parent / "recorded"


def main() -> None:
    """Record the cases named on the command line, or all."""
    torch.set_num_threads(1)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    for case in CASES if world == 1 else [TWO_RANKS]:
        if sys.argv[1:] and case.name not in sys.argv[1:]:
            continue
        # TRL steps the optimizer at every micro-batch of the last batch of a pass: stay before it.
        found = run(case, trl, prompts((BATCHES + 1) * rows_of_a_batch(case) * world))
        versions = {m.__name__: m.__version__ for m in (trl, transformers, torch)}
        text = json.dumps({"versions": versions, **found})
        rank = f".rank{os.environ['RANK']}" if world > 1 else ""
        (FOLDER / f"{case.name}{rank}.json").write_text(text + "\n", encoding="utf-8")
        print(case.name, found["logs"][-1])
    if world > 1:
        leave()


def leave() -> None:
    """End a rank without the exit handlers, at which gloo sometimes aborts."""
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
