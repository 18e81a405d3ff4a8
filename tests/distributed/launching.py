"""Starting two ranks of a script on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def two_ranks(script: str, way: str, *words: str) -> str:
    """Run the script by two processes, its first word `way`; what they said on stderr.

    Their exit status says little, as gloo's threads may abort it: judge what they wrote.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--standalone", script, way, *words]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    if way == "ddp":
        env["ACCELERATE_USE_CPU"] = "true"
    return subprocess.run(command, env=env, timeout=600, capture_output=True, text=True).stderr
