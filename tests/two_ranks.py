"""Workers of tests as the two ranks of one run on CPUs: how they start and how they end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]


def start(
    script: str | Path, *words: str | Path, timeout: float = 300, on_path: tuple[Path, ...] = ()
) -> str:
    """Run a script as two ranks; the end of what they said. Judge them by what they wrote.

    Args:
        script: the worker.
        words: its arguments.
        timeout: seconds.
        on_path: folders to import from, before those of the environment.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--standalone", str(script), *map(str, words)]
    given = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(ROOT), *map(str, on_path), *([given] if given else [])])
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=env, timeout=timeout, capture_output=True, text=True)
    return done.stderr[-3000:]


def results(files: list[Path], said: str) -> list[Any]:
    """What each rank saved to its file."""
    assert all(file.exists() for file in files), said
    return [torch.load(file, weights_only=False) for file in files]


def run(script: str | Path, folder: Path, *words: str | Path, **options: Any) -> list[Any]:
    """What each rank saved as FOLDER/<rank>.pt; the folder is the script's last argument."""
    said = start(script, *words, folder, **options)
    return results([folder / f"{rank}.pt" for rank in range(2)], said)


def leave() -> None:
    """End this rank when the other has come as far."""
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort an ordinary exit
