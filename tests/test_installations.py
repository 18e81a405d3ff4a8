"""The ways in which fastrl is built and installed, and what importing it brings in."""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.building import ROOT, old_nvcc, program, run

# Says what an installation holds; run where no checkout is in reach.
PROBE = """
import json, pathlib, torch, fastrl, fastrl.kernels
from fastrl import ops
from fastrl.ops import _native
x = torch.arange(6.0).view(2, 3)
print(json.dumps({
    "where": fastrl.__file__,
    "missing": {kind: _native.missing(kind) for kind in ("cpu", "cuda")},
    "recorded": _native.build_info(),
    "gae": ops.gae(x, x, x > 0, 0.5, 0.5)[0].tolist(),
    "kernels": [p.name for d in fastrl.kernels.__path__ for p in pathlib.Path(d).glob("*.py")],
}))
"""
GAE = [[0.75, 1.0, 0.0], [2.625, 2.5, 0.0]]

# --- installations -------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    """A copy of what a clone holds, without anything built."""
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("csrc", "fastrl", "kernels"):
        shutil.copytree(
            ROOT / name,
            copy / name,
            ignore=shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__"),
        )
    for name in (
        "CMakeLists.txt",
        "LICENSE",
        "MANIFEST.in",
        "README.md",
        "pyproject.toml",
        "setup.py",
    ):
        shutil.copy(ROOT / name, copy)
    return copy


def build_wheel(where: Path, out: Path, **environment: str) -> Path:
    """The one wheel that pip makes of a source folder or archive."""
    done = run(
        *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"),
        *("--disable-pip-version-check", "-w", out, where),
        cwd=out.parent,
        **environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


def unpacked(wheel: Path, folder: Path) -> Path:
    """What an installer does with a wheel: its files on the path."""
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def probe(python: Path | str, cwd: Path, **environment: str) -> dict:
    done = run(python, "-c", PROBE, cwd=cwd, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def kernel_names() -> set[str]:
    return {path.name for path in (ROOT / "kernels").glob("*.py")}


def no_tools(folder: Path) -> str:
    """A PATH without any compiler."""
    folder.mkdir()
    for name in ("sh", "uname"):
        (folder / name).symlink_to(shutil.which(name))
    return str(folder)


@pytest.mark.slow
def test_build_none(source, tmp_path):
    wheel = build_wheel(source, tmp_path / "out", FASTRL_BUILD="none")
    assert wheel.name.endswith("py3-none-any.whl")
    found = probe(sys.executable, tmp_path, PYTHONPATH=str(unpacked(wheel, tmp_path / "site")))
    assert found["recorded"]["built"] == []
    assert found["missing"]["cpu"] == "not built: FASTRL_BUILD=none"
    assert found["gae"] == GAE
    assert kernel_names() <= set(found["kernels"])


@pytest.mark.slow
def test_no_compiler_gives_a_pure_install_that_says_so(source, tmp_path):
    done = run(
        *(sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "-v"),
        *("--disable-pip-version-check", "--target", tmp_path / "site", source),
        cwd=tmp_path,
        PATH=no_tools(tmp_path / "bin"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fastrl: cpu library: no C++ compiler on PATH" in done.stdout + done.stderr
    assert "the reference backend serves" in done.stdout + done.stderr
    found = probe(sys.executable, tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert found["where"].startswith(str(tmp_path))
    assert "no C++ compiler on PATH" in found["missing"]["cpu"]
    assert found["gae"] == GAE
    told = run(
        *(sys.executable, "-m", "fastrl", "env", "--native"),
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path / "site"),
    )
    assert "no C++ compiler on PATH" in told.stdout
    assert "reference backend" in told.stdout


@pytest.mark.slow
def test_a_compiler_that_fails(source, tmp_path):
    program(tmp_path / "broken", 'echo "broken: error: out of order" >&2\nexit 1\n')
    command = (sys.executable, "setup.py", "build_ext", "--inplace")
    done = run(*command, cwd=source, CXX=str(tmp_path / "broken"))
    assert done.returncode == 0, done.stderr
    recorded = json.loads((source / "fastrl" / "_build_info.json").read_text())
    assert recorded["built"] == []
    assert "the build failed" in recorded["reason"]["cpu"]
    required = run(*command, cwd=source, CXX=str(tmp_path / "broken"), FASTRL_REQUIRE_NATIVE="1")
    assert required.returncode != 0
    assert "FASTRL_REQUIRE_NATIVE=1, but the cpu library: the build failed" in required.stderr


@pytest.mark.slow
def test_source_archive_to_wheel_keeps_the_cpu_library_without_cuda(source, tmp_path):
    # One build for three questions: is the archive whole, is the wheel, and does a CUDA_HOME that
    # names nothing cost more than the CUDA library.
    made = run(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path / "dist", cwd=source)
    assert made.returncode == 0, made.stdout + made.stderr
    (archive,) = (tmp_path / "dist").glob("fastrl-*.tar.gz")
    wheel = build_wheel(archive, tmp_path / "out", FASTRL_BUILD="cuda", CUDA_HOME="/nowhere")
    assert "none-any" not in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"fastrl/kernels/{name}" for name in kernel_names()} <= set(names)
    assert not [name for name in names if name.startswith(("kernels/", "csrc/", "tests/"))]
    assert "fastrl/kernels/__init__.py" not in names
    found = probe(sys.executable, tmp_path, PYTHONPATH=str(unpacked(wheel, tmp_path / "site")))
    assert found["where"].startswith(str(tmp_path))
    assert found["recorded"]["built"] == ["cpu"]
    assert found["missing"]["cpu"] is None
    assert "CUDA_HOME=/nowhere holds no bin/nvcc" in found["recorded"]["reason"]["cuda"]
    assert found["gae"] == GAE


@pytest.mark.slow
def test_editable_install_beside_an_nvcc_that_refuses_the_compiler(source, tmp_path):
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    site = run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path)
    # A plain line in a .pth adds the folder, but none of its .pth files and so not our checkout.
    (Path(site.stdout.strip()) / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps"),
        *("--no-build-isolation", "--disable-pip-version-check", "-e", source),
        cwd=tmp_path,
        FASTRL_BUILD="cuda",
        CUDA_HOME=str(old_nvcc(tmp_path / "toolkit")),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = probe(python, tmp_path)
    assert found["where"].startswith(str(source))
    assert found["recorded"]["built"] == ["cpu"]
    assert found["missing"]["cpu"] is None
    reason = found["recorded"]["reason"]["cuda"]
    assert "nvcc 11.0 does not accept the host compiler" in reason
    assert "CUDAHOSTCXX" in reason
    assert found["gae"] == GAE
    assert kernel_names() <= set(found["kernels"])
    # A later failure leaves the library that works; FASTRL_BUILD=none takes it away.
    command = (python, "setup.py", "-q", "build_ext", "--inplace")
    program(tmp_path / "broken", "exit 1\n")
    run(*command, cwd=source, CXX=str(tmp_path / "broken"))
    again = probe(python, tmp_path)
    assert again["missing"]["cpu"] is None
    assert "an earlier build stays" in again["recorded"]["reason"]["cpu"]
    run(*command, cwd=source, FASTRL_BUILD="none")
    assert probe(python, tmp_path)["missing"]["cpu"] == "not built: FASTRL_BUILD=none"


@pytest.mark.slow
def test_isolated_build_takes_its_tools_from_the_registry(source, tmp_path):
    done = run(
        *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--disable-pip-version-check"),
        *("-w", tmp_path / "out", source),
        cwd=tmp_path,
        FASTRL_BUILD="cpu",
        FASTRL_REQUIRE_NATIVE="1",
    )
    output = done.stdout + done.stderr
    if "No matching distribution found for setuptools" in output or "ConnectionError" in output:
        pytest.skip("no package registry is in reach")
    assert done.returncode == 0, output
    (wheel,) = (tmp_path / "out").glob("*.whl")
    found = probe(sys.executable, tmp_path, PYTHONPATH=str(unpacked(wheel, tmp_path / "site")))
    assert found["missing"]["cpu"] is None
    assert found["gae"] == GAE


@pytest.mark.slow
def test_bare_checkout_runs_on_the_reference(source):
    found = probe(sys.executable, source)
    assert found["where"].startswith(str(source))
    assert "was not built" in found["missing"]["cpu"]
    assert found["gae"] == GAE
    assert kernel_names() <= set(found["kernels"])


# --- imports -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_folder_kernels_is_not_taken_for_hugging_faces_package():
    done = run(
        sys.executable,
        "-c",
        "import importlib.util, transformers.models.llama.modeling_llama, fastrl.kernels\n"
        "from importlib.metadata import packages_distributions\n"
        "from transformers.utils import is_kernels_available\n"
        "if 'kernels' in packages_distributions():\n"
        "    from kernels import get_kernel\n"
        "else:\n"
        "    assert not is_kernels_available()\n",
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.slow
def test_import_is_light():
    done = run(
        sys.executable,
        "-c",
        "import sys, fastrl\n"
        "assert 'torch' not in sys.modules\n"
        "import fastrl.ops, fastrl.types, torch\n"
        "heavy = {'triton', 'vllm', 'diffusers', 'deepspeed', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not torch.cuda.is_initialized()\n"
        "from fastrl import PPOTrainer\n"
        "heavy = {'vllm', 'diffusers', 'deepspeed', 'bitsandbytes'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not torch.cuda.is_initialized()\n",
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
