"""What the tests of building fastrl share: its root, commands without settings, an old nvcc."""

from __future__ import annotations

import os
import stat
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD_VARIABLES = ("CUDA_HOME", "CUDA_PATH", "CUDAHOSTCXX", "CXX", "FASTRL_CUDA_ARCHS")


def program(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def old_nvcc(toolkit: Path) -> Path:
    """A toolkit whose nvcc accepts no g++ of this decade."""
    program(
        toolkit / "bin" / "nvcc",
        'case "$*" in\n'
        '*--version*) echo "Cuda compilation tools, release 11.0, V11.0.194"; exit 0;;\n'
        "*--list-gpu-arch*) echo compute_80; exit 0;;\n"
        "esac\n"
        'echo "host_config.h:138:2: error: #error -- unsupported GNU version! gcc versions later'
        ' than 9 are not supported!" >&2\nexit 1\n',
    )
    return toolkit


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in (*BUILD_VARIABLES, "PYTHONPATH") and not key.startswith("FASTRL_")
    }
    tools = f"{sysconfig.get_path('scripts')}{os.pathsep}{kept['PATH']}"
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=kept | {"PATH": tools} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
