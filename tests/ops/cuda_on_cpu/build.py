"""Compiles csrc/cuda for the CPU, with the headers beside this file, and loads the result."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

from filelock import FileLock

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-w"]
# longjmp between fibres is what the fortified one forbids.
FLAGS += ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=0"]


class Unavailable(Exception):
    """The text is the reason."""


def _sources() -> list[Path]:
    return [*sorted((ROOT / "csrc/cuda").glob("*.cu")), ROOT / "csrc/bindings_cuda.cpp"]


def _digest() -> str:
    headers = [*HERE.glob("*.h"), *ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/cuda/*.*h")]
    files = sorted([*_sources(), *headers])
    digest = hashlib.sha256(sysconfig.get_config_var("EXT_SUFFIX").encode())
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _compile(folder: Path) -> Path:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        raise Unavailable("no C++ compiler")
    try:
        import pybind11
    except ImportError:
        raise Unavailable("pybind11 is not installed") from None
    if not _sources()[0].exists():
        raise Unavailable("csrc is not here (an installed copy)")
    target = folder / f"{_digest()}.so"
    with FileLock(folder / "lock"):  # tests may run in several processes
        if not target.exists():
            _build(target, compiler, pybind11.get_include())
    return target


def _build(target: Path, compiler: str, pybind11_headers: str) -> None:
    folder = target.parent
    includes = [HERE, ROOT / "csrc", pybind11_headers, sysconfig.get_paths()["include"]]
    command = [compiler, *FLAGS, *(f"-I{path}" for path in includes), "-x", "c++", "-c"]
    objects = [folder / f"{source.stem}.o" for source in _sources()]
    waiting = list(zip(_sources(), objects, strict=True))
    running: list[subprocess.Popen[str]] = []
    while waiting or running:
        while waiting and len(running) < 2:
            source, made = waiting.pop(0)
            line = [*command, str(source), "-o", str(made)]
            running.append(subprocess.Popen(line, stderr=subprocess.PIPE, text=True))
        _, errors = running[0].communicate()
        if running.pop(0).returncode != 0:
            raise RuntimeError(f"csrc/cuda does not compile for the CPU:\n{errors[:4000]}")
    partial = folder / "partial.so"
    subprocess.run([compiler, "-shared", *map(str, objects), "-o", str(partial)], check=True)
    partial.replace(target)


def load(folder: Path) -> ModuleType:
    """The module _core_cuda, running on the CPU.

    Raises:
        Unavailable: if this machine cannot build it.
    """
    path = str(_compile(folder))
    loader = importlib.machinery.ExtensionFileLoader("_core_cuda", path)
    spec = importlib.util.spec_from_loader("_core_cuda", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
