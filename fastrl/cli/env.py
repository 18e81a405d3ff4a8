"""`fastrl env`: what this installation is made of, and which backend serves which operation."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

import fastrl
import fastrl.ops
from fastrl.ops import _dispatch, _native

HELP = "show versions, devices, the native build, and why a backend is missing"

REQUIRED = ("torch", "transformers", "accelerate", "numpy", "huggingface_hub", "rich")
OPTIONAL = ("triton", "peft", "datasets", "deepspeed", "bitsandbytes", "diffusers", "vllm", "trl")
INSTRUCTION_SETS = ("baseline", "AVX2", "AVX-512")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--json", action="store_true", help="print the same as JSON")
    parser.add_argument("--native", action="store_true", help="only the native libraries' lines")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    cores = os.cpu_count() or 1
    found = [f"cpu: {platform.machine()}, {cores} cores, {torch.get_num_threads()} threads in use"]
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        name = torch.cuda.get_device_name(index)
        found.append(f"cuda:{index}: {name}, sm_{major}{minor}, {memory:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("mps")
    if torch.xpu.is_available():
        found.append("xpu")
    return found


def _native_libraries() -> dict[str, str]:
    """Library -> what it is, or why it cannot be used."""
    lines = {}
    for kind in ("cpu", "cuda"):
        reason = _native.missing(kind)
        if reason is not None:
            lines[kind] = f"no: {reason}"
        elif kind == "cpu":
            core = _native.load("cpu")
            threads = "OpenMP" if core.openmp else "one thread (no OpenMP)"
            lines[kind] = f"yes: {INSTRUCTION_SETS[core.isa()]}, {threads}"
        else:
            lines[kind] = f"yes: built for sm {', '.join(_native.build_info().get('archs', []))}"
    return lines


def report() -> dict[str, Any]:
    """All that the command shows, as plain data."""
    return {
        "fastrl": fastrl.__version__,
        "location": str(Path(fastrl.__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in (*REQUIRED, *OPTIONAL)},
        "devices": _devices(),
        "native": _native_libraries(),
        "last_build": _native.build_info(),
        "forced_backend": _dispatch.forced_backend(),
        "backends": {name: _dispatch.backend_missing(name) for name in _dispatch.BACKENDS},
        "operations": dict(_dispatch.table()),
    }


def _operation_lines(operations: dict[str, dict[str, str | None]]) -> list[str]:
    """One line for each operation: yes, no (the machine lacks it), - (there is no such backend)."""
    width = max(len(name) for name in operations)
    lines = [f"  {'':{width}}  " + "  ".join(f"{b:9}" for b in _dispatch.BACKENDS)]
    for name, missing in sorted(operations.items()):
        cells = []
        for backend in _dispatch.BACKENDS:
            there = _dispatch.OPS[name].has(backend)
            cells.append("-" if not there else "yes" if missing[backend] is None else "no")
        lines.append(f"  {name:{width}}  " + "  ".join(f"{cell:9}" for cell in cells))
    return [line.rstrip() for line in lines]


def _native_lines(native: dict[str, str]) -> list[str]:
    lines = [f"  {kind:4}  {state}" for kind, state in native.items()]
    if native["cpu"].startswith("no"):
        lines.append("  Everything works all the same, on the reference backend (torch), slower.")
    recorded = _native.build_info().get("reason", {})
    lines += [f"  {kind:4}  at the last build: {why}" for kind, why in recorded.items()]
    return lines


def _text(found: dict[str, Any]) -> str:
    packages = [f"  {name} {version or '-'}" for name, version in found["packages"].items()]
    lines = [
        f"fastrl {found['fastrl']} in {found['location']}",
        f"python {found['python']} on {found['platform']}",
        "packages (- is not installed)",
        *packages,
        "devices",
        *(f"  {device}" for device in found["devices"]),
        "native libraries",
        *_native_lines(found["native"]),
        "operations (yes, no: see below, -: no such backend)",
        *_operation_lines(found["operations"]),
    ]
    reasons = {name: why for name, why in found["backends"].items() if why is not None}
    if reasons:
        lines += ["why not", *(f"  {name}: {why}" for name, why in reasons.items())]
    if found["forced_backend"] is not None:
        lines.append(f"forced backend: {found['forced_backend']}")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> int:
    """Print the report."""
    if options.json:
        print(json.dumps(report(), indent=1))
    elif options.native:
        print("\n".join(["native libraries", *_native_lines(_native_libraries())]))
    else:
        print(_text(report()))
    return 0
