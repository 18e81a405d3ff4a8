"""Builds the native libraries with CMake. Imports no torch, so it works under build isolation.

FASTRL_BUILD=auto   (default) the CPU library; the CUDA library too where nvcc and a GPU are found
FASTRL_BUILD=cpu    the CPU library only
FASTRL_BUILD=cuda   both, GPU or not
FASTRL_BUILD=none   neither: the reference backend serves
FASTRL_CUDA_ARCHS   e.g. "80;90"; default: the visible GPUs' own, else those of 80 90 100 120 that
                    nvcc knows
FASTRL_REQUIRE_NATIVE=1   a library that was asked for and fails to build stops the installation
CUDA_HOME           the toolkit to use; else nvcc on PATH, else /usr/local/cuda
CXX, CUDAHOSTCXX    the C++ compiler, and the one that nvcc is to use

A library that fails to build is left out, said so, and recorded in fastrl/_build_info.json, which
`fastrl env` shows. Without any, the wheel is pure Python.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MODES = ("auto", "cpu", "cuda", "none")
ARCHS = ("80", "90", "100", "120")


class Skipped(Exception):
    """A library is not built; the text is the reason, in one sentence."""


class Failed(Skipped):
    """It was tried and did not compile."""


def asked_mode() -> str:
    mode = os.environ.get("FASTRL_BUILD", "auto").strip().lower() or "auto"
    if mode not in MODES:
        raise SystemExit(f"FASTRL_BUILD={mode!r} is not known; choose one of {', '.join(MODES)}")
    return mode


def output_of(*command: str) -> str:
    """Standard output and error of a short command, or '' if it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr if done.returncode == 0 else ""


def find_tool(name: str) -> str | None:
    """A build tool on PATH (where pip's isolated builds have it), or beside this interpreter."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def find_pybind11() -> Path:
    """The folder of pybind11's headers: the package's own, or the copy that torch carries."""
    for package in ("pybind11", "torch"):
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            include = Path(place) / "include"
            if (include / "pybind11" / "pybind11.h").exists():
                return include
    raise Skipped("pybind11 is not installed (python -m pip install pybind11)")


def find_cxx() -> str:
    """The C++ compiler's path."""
    asked = os.environ.get("CXX", "").split()
    for name in [asked[0]] if asked else ["c++", "g++", "clang++"]:
        found = shutil.which(name)
        if found:
            return found
    if asked:
        raise Skipped(f"CXX={asked[0]} is not a program; unset it or name a C++ compiler")
    raise Skipped("no C++ compiler on PATH (install g++ or clang++, or set CXX)")


def find_nvcc() -> str:
    """The toolkit's compiler: CUDA_HOME, then nvcc on PATH, then /usr/local/cuda."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(variable)
        if home:
            nvcc = Path(home) / "bin" / "nvcc"
            if nvcc.is_file():
                return str(nvcc)
            raise Skipped(f"{variable}={home} holds no bin/nvcc; unset it or name a CUDA toolkit")
    found = shutil.which("nvcc")
    if found is None and Path("/usr/local/cuda/bin/nvcc").is_file():
        found = "/usr/local/cuda/bin/nvcc"
    if found is None:
        raise Skipped("no nvcc found (install the CUDA toolkit or set CUDA_HOME)")
    return found


def visible_archs() -> list[str]:
    """Compute capabilities of the GPUs in this machine, e.g. ['90']; empty without a GPU."""
    listing = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    found = {major + minor for major, minor in re.findall(r"^(\d+)\.(\d)\s*$", listing, re.M)}
    return sorted(found, key=int)


def cuda_archs(nvcc: str) -> list[str]:
    """Values for CMAKE_CUDA_ARCHITECTURES: machine code for each, PTX of the last as well."""
    asked = re.findall(r"\d+[af]?", os.environ.get("FASTRL_CUDA_ARCHS", ""))
    if asked:
        return asked
    visible = visible_archs()
    if visible:
        return visible
    known = set(re.findall(r"compute_(\d+)", output_of(nvcc, "--list-gpu-arch")))
    chosen = [arch for arch in ARCHS if arch in known] or ["80"]
    return [f"{arch}-real" for arch in chosen[:-1]] + [chosen[-1]]


def first_error(log: str) -> str:
    """The line of a build log that says what went wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for pattern in (r"\b(fatal )?error\b.*:", r"CMake Error", r"[Ee]rror"):
        for number, line in enumerate(lines):
            if re.search(pattern, line):
                told_below = 4 if line.endswith(":") else 1
                return " ".join(lines[number : number + told_below])
    return lines[-1] if lines else "no output"


def check_nvcc(nvcc: str, host: str, work: Path) -> None:
    """Compile an empty program, so that trouble between nvcc and the C++ compiler has a clear name.

    Raises:
        Failed: with both versions and the variable to set, or nvcc's own words.
    """
    work.mkdir(parents=True, exist_ok=True)
    source = work / "empty.cu"
    source.write_text("int main() { return 0; }\n")
    command = [nvcc, "-ccbin", host, "-c", str(source), "-o", str(work / "empty.o")]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode == 0:
        return
    release = re.search(r"release ([\d.]+)", output_of(nvcc, "--version"))
    version = (output_of(host, "--version").splitlines() or ["unknown version"])[0]
    refused = re.search(r"unsupported \S+ version!([^!]*!)?", done.stdout)
    if refused is None:
        raise Failed(f"{nvcc} cannot compile an empty program: {first_error(done.stdout)}")
    raise Failed(
        f"nvcc {release[1] if release else 'of unknown version'} does not accept the host compiler "
        f"{host} ({version}): {refused[0]} Set CUDAHOSTCXX to a C++ compiler that it accepts"
    )


def run_cmake(part: str, work: Path, settings: list[str]) -> None:
    """Configure and build one part; the module lands in `work/out`, the whole log in `work`."""
    cmake = find_tool("cmake")
    if cmake is None:
        raise Skipped("cmake is not installed (python -m pip install cmake ninja)")
    ninja = find_tool("ninja")
    if ninja:
        settings = [*settings, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    shutil.rmtree(work / "out", ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    configure = [cmake, "--fresh", "-S", str(ROOT), "-B", str(work), f"-DFASTRL_PART={part}"]
    configure += [f"-DFASTRL_OUTPUT={work / 'out'}", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-DFASTRL_PYBIND11={find_pybind11()}", "-DCMAKE_BUILD_TYPE=Release", *settings]
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    log_file = work / "build.log"
    log = ""
    for command in (configure, [cmake, "--build", str(work), "--parallel", jobs]):
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        log += f"$ {' '.join(command)}\n{done.stdout}\n"
        log_file.write_text(log)
        if done.returncode:
            sys.stderr.write(done.stdout)
            raise Failed(f"the build failed: {first_error(done.stdout)} (log: {log_file})")


def build_part(part: str, mode: str, work: Path) -> list[str]:
    """Build one library and return the GPU architectures it holds.

    Raises:
        Skipped: with the reason, if it was not wanted or did not build.
    """
    if mode == "none":
        raise Skipped("not built: FASTRL_BUILD=none")
    cxx = find_cxx()
    if part == "cpu":
        run_cmake(part, work, [f"-DCMAKE_CXX_COMPILER={cxx}"])
        return []
    if mode == "cpu":
        raise Skipped("not built: FASTRL_BUILD=cpu")
    nvcc = find_nvcc()
    if mode == "auto" and not visible_archs():
        raise Skipped(
            "not built: no NVIDIA GPU is visible (FASTRL_BUILD=cuda builds it all the same)"
        )
    archs = cuda_archs(nvcc)
    host = os.environ.get("CUDAHOSTCXX") or cxx
    check_nvcc(nvcc, host, work)
    settings = [f"-DCMAKE_CXX_COMPILER={cxx}", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    settings += [
        f"-DCMAKE_CUDA_HOST_COMPILER={host}",
        f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(archs)}",
    ]
    run_cmake(part, work, settings)
    return [arch.removesuffix("-real") for arch in archs]


class BuildNative(build_ext):
    """Replaces setuptools' own compilation by CMake, and lets a library fail without the others."""

    def run(self) -> None:
        mode = asked_mode()
        here = ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()
        target = here / "fastrl"
        target.mkdir(parents=True, exist_ok=True)
        info: dict[str, Any] = {"built": [], "reason": {}, "archs": []}
        for part in ("cpu", "cuda"):
            work = self.workplace() / part
            try:
                archs = build_part(part, mode, work)
            except (Skipped, OSError) as skipped:
                info["reason"][part] = self.give_up(part, mode, skipped, target)
                continue
            for module in (work / "out").iterdir():
                shutil.copy2(module, target / f".{module.name}")
                os.replace(target / f".{module.name}", target / module.name)
            info["built"].append(part)
            info["archs"] += archs
            self.tell(f"{part} library: built" + (f" for {', '.join(archs)}" if archs else ""))
        (target / "_build_info.json").write_text(json.dumps(info, indent=1) + "\n")
        if not info["built"]:
            self.tell(
                "no native library: this is a pure Python install, the reference backend serves"
            )
            self.distribution.ext_modules = []

    def workplace(self) -> Path:
        """Where CMake works: a lasting place if editable, to rebuild only what changed."""
        if self.editable_mode:
            return ROOT / "build" / f"editable-{sys.implementation.cache_tag}"
        return Path(self.build_temp).resolve()

    def give_up(self, part: str, mode: str, skipped: Exception, target: Path) -> str:
        """Say that a library is left out, and return the reason to record."""
        reason = str(skipped)
        earlier = list(target.glob(f"_core_{part}.*"))
        if earlier and isinstance(skipped, Failed):
            reason += "; the library of an earlier build stays in place"
        elif earlier:
            for module in earlier:
                module.unlink()
        self.tell(f"{part} library: {reason}")
        wanted = {"none": (), "cuda": ("cpu", "cuda")}.get(mode, ("cpu",))
        if part in wanted and os.environ.get("FASTRL_REQUIRE_NATIVE", "0") not in ("", "0"):
            raise SystemExit(f"FASTRL_REQUIRE_NATIVE=1, but the {part} library: {reason}")
        return reason

    def tell(self, message: str) -> None:
        print(f"fastrl: {message}", file=sys.stderr, flush=True)

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Wheel(bdist_wheel):
    """Builds the libraries first: only then is it known whether the wheel is tied to a platform."""

    def run(self) -> None:
        self.run_command("build_ext")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


if __name__ == "__main__":
    setup(
        packages=find_packages(include=["fastrl", "fastrl.*"]),
        # Names only, so that setuptools knows of a binary part; CMakeLists.txt has the sources.
        ext_modules=[Extension(f"fastrl._core_{part}", sources=[]) for part in ("cpu", "cuda")],
        cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
    )
