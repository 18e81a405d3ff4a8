"""A worker's end of the race: one JSON line in, one JSON line out.

A worker is a long-lived process of one library in its own environment. The first line it is given
says what to set up; every later line is one round. What the libraries print goes to standard error.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "trl",
    "peft",
    "datasets",
    "diffusers",
    "tokenizers",
    "numpy",
    "pyarrow",
)
ROOT = Path(__file__).resolve().parents[2]

Round = Callable[[int], dict[str, Any]]


def serve(setup: Callable[[dict[str, Any]], Round]) -> None:
    """Answer requests until standard input ends.

    `setup(request)` gets the first request and gives the function for the rounds, which gets the
    round's number and gives what it measured. An exception is sent back as `{"error": ...}`.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run: Round | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if run is None:
                run = setup(request)
                answer: dict[str, Any] = {"versions": versions()}
            else:
                answer = run(request["round"])
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def versions() -> dict[str, str]:
    """What this environment holds of the packages that matter."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def import_fastrl() -> Any:
    """fastrl as installed, or from the checkout this file is in."""
    sys.path.append(str(ROOT))
    import fastrl

    return fastrl


def begin(request: dict[str, Any], apart: str | None = None) -> Any:
    """Be quiet, take the request's threads, and import the library this worker is of.

    Args:
        request: the first one.
        apart: a module of the peer's where its trainer is; None: its top level.
    """
    import torch
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(request["threads"])
    name = sys.argv[1]
    return import_fastrl() if name == "fastrl" else importlib.import_module(apart or name)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds on the wall and the call's result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def _status_bytes(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; memory is measured on Linux only")


def resident_bytes() -> int:
    """Resident now, after what can be given back has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status_bytes("VmRSS")


def reset_peak() -> None:
    """Start a new high-water mark of resident memory (Linux: 5 into clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """High-water mark of resident memory since `reset_peak`."""
    return _status_bytes("VmHWM")
