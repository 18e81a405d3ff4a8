"""What setup.py decides, what it says when a part is missing, and its CUDA library."""

from __future__ import annotations

import importlib.util
import sys
import tomllib

import pytest

from tests.building import BUILD_VARIABLES, ROOT, old_nvcc, program, run


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


# --- building ------------------------------------------------------------------------------------


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
