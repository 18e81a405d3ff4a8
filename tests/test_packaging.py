"""The ways in which fastrl is built and installed, and what each says when a part is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD_VARIABLES = ("CUDA_HOME", "CUDA_PATH", "CUDAHOSTCXX", "CXX", "FASTRL_CUDA_ARCHS")

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


@pytest.fixture(scope="module")
def setup_module_under_test():
    """setup.py as a module; its setup() call is guarded."""
    spec = importlib.util.spec_from_file_location("fastrl_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clean_environment(monkeypatch):
    for name in (*BUILD_VARIABLES, "FASTRL_BUILD", "FASTRL_REQUIRE_NATIVE", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


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


# --- setup.py's decisions, without building ------------------------------------------------------


def test_extras_are_trls_and_ours():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    trls = {"test", "peft", "diffusers", "deepspeed", "benchmark", "quantization", "dev"}
    assert trls | {"liger", "llm_judge", "vllm", "rewards"} <= extras.keys()
    assert extras["quantization"] == ["bitsandbytes"]
    assert not set(extras["deepspeed"]) & set(project["dependencies"])


def test_setup_imports_no_torch():
    assert "torch" not in {
        line.split()[1].split(".")[0]
        for line in (ROOT / "setup.py").read_text().splitlines()
        if line.startswith(("import ", "from "))
    }


def test_toolkit_order(setup_module_under_test, clean_environment, tmp_path):
    find_nvcc = setup_module_under_test.find_nvcc
    named = old_nvcc(tmp_path / "named")
    on_path = old_nvcc(tmp_path / "on_path")
    clean_environment.setenv("PATH", str(on_path / "bin"))
    assert find_nvcc() == str(on_path / "bin" / "nvcc")
    clean_environment.setenv("CUDA_HOME", str(named))
    assert find_nvcc() == str(named / "bin" / "nvcc")
    clean_environment.setenv("CUDA_HOME", "/nowhere")
    with pytest.raises(
        setup_module_under_test.Skipped, match="CUDA_HOME=/nowhere holds no bin/nvcc"
    ):
        find_nvcc()


def test_archs(setup_module_under_test, clean_environment, tmp_path):
    nvcc = str(old_nvcc(tmp_path) / "bin" / "nvcc")
    clean_environment.setattr(setup_module_under_test, "visible_archs", list)
    assert setup_module_under_test.cuda_archs(nvcc) == ["80"]
    clean_environment.setattr(setup_module_under_test, "visible_archs", lambda: ["90"])
    assert setup_module_under_test.cuda_archs(nvcc) == ["90"]
    clean_environment.setenv("FASTRL_CUDA_ARCHS", "80;90a")
    assert setup_module_under_test.cuda_archs(nvcc) == ["80", "90a"]


def test_visible_archs_are_read_from_the_driver(
    setup_module_under_test, clean_environment, tmp_path
):
    program(tmp_path / "nvidia-smi", "printf '9.0\\n8.0\\n9.0\\n10.3\\n'\n")
    clean_environment.setenv("PATH", str(tmp_path))
    assert setup_module_under_test.visible_archs() == ["80", "90", "103"]
    program(tmp_path / "nvidia-smi", "echo 'NVIDIA-SMI has failed' ; exit 9\n")
    assert setup_module_under_test.visible_archs() == []


def test_nvcc_and_host_compiler_are_named(setup_module_under_test, clean_environment, tmp_path):
    nvcc = str(old_nvcc(tmp_path) / "bin" / "nvcc")
    host = str(program(tmp_path / "g++", 'echo "g++ (Debian) 15.1.0"\n'))
    with pytest.raises(setup_module_under_test.Failed) as caught:
        setup_module_under_test.check_nvcc(nvcc, host, tmp_path / "work")
    for words in ("nvcc 11.0", "15.1.0", "later than 9 are not supported", "CUDAHOSTCXX"):
        assert words in str(caught.value)


def test_no_compiler_is_named(setup_module_under_test, clean_environment, tmp_path):
    clean_environment.setenv("PATH", str(tmp_path))
    with pytest.raises(setup_module_under_test.Skipped, match=r"no C\+\+ compiler on PATH"):
        setup_module_under_test.find_cxx()
    clean_environment.setenv("CXX", "/nowhere/g++ -O2")
    with pytest.raises(
        setup_module_under_test.Skipped, match=r"CXX=/nowhere/g\+\+ is not a program"
    ):
        setup_module_under_test.find_cxx()


def test_an_unknown_mode_is_refused(setup_module_under_test, clean_environment):
    clean_environment.setenv("FASTRL_BUILD", "gpu")
    with pytest.raises(SystemExit, match=r"FASTRL_BUILD='gpu' is not known.*auto, cpu, cuda, none"):
        setup_module_under_test.asked_mode()


@pytest.mark.parametrize(
    "log, words",
    [
        ("ok\nfoo.cpp:3:1: error: no such thing\nmore", "foo.cpp:3:1: error: no such thing"),
        ("CMake Error at x:1 (message):\n  Could NOT find Python", "Could NOT find Python"),
        ("", "no output"),
    ],
)
def test_the_line_that_matters_is_told(setup_module_under_test, log, words):
    assert words in setup_module_under_test.first_error(log)


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


@pytest.mark.slow
def test_cuda_library_builds_and_loads_without_a_gpu(
    setup_module_under_test, clean_environment, tmp_path
):
    try:
        setup_module_under_test.find_nvcc()
    except setup_module_under_test.Skipped as reason:
        pytest.skip(str(reason))
    clean_environment.setenv("FASTRL_CUDA_ARCHS", "90")
    assert setup_module_under_test.build_part("cuda", "cuda", tmp_path) == ["90"]
    loaded = run(
        *(sys.executable, "-c", "import _core_cuda as core; print(repr(core.probe()))"),
        cwd=tmp_path / "out",
    )
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.startswith("'")


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
