"""Predicates of installed packages, and that names which need an absent one import without it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import warnings

import pytest

import fastrl
from fastrl import import_utils

# Packages that are not needed for `import fastrl` and any of its names.
OPTIONAL = (
    "bitsandbytes",
    "diffusers",
    "llm_blender",
    "mergekit",
    "openai",
    "vllm",
    "wandb",
    "weave",
)


def test_a_package_that_is_there_and_one_that_is_not(monkeypatch, tmp_path):
    assert import_utils.is_peft_available() and import_utils.is_rich_available()
    for name in ("unsloth", "openreward"):
        assert importlib.util.find_spec(name) is None
        assert getattr(import_utils, f"is_{name}_available")() is False
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert import_utils.is_unsloth_available() and import_utils.is_openreward_available()


def test_versions_are_compared_as_versions(monkeypatch):
    # As strings "0.9.0" is later than "0.10.0", which TRL 0.7 was caught by.
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.10.0")
    assert import_utils.is_transformers_greater_than("0.9.0")
    assert not import_utils.is_transformers_greater_than(version="0.10.0")
    assert not import_utils.is_accelerate_greater_20_0()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert import_utils.is_vllm_available() and import_utils.is_vllm_available("0.9.1")
    assert not import_utils.is_vllm_available(min_version="0.11")
    assert import_utils.is_liger_kernel_available("0.8.2")
    assert import_utils.is_liger_kernel_available()
    assert not import_utils.is_liger_kernel_available(min_version="0.10.1")
    with pytest.raises(TypeError, match="needs a version"):
        import_utils.is_transformers_greater_than()


def test_a_stand_in_without_specification_is_no_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", type(sys)("wandb"))  # __spec__ is None
    assert import_utils.is_wandb_available() is False


def test_bitsandbytes_needs_a_gpu_too(monkeypatch):
    import torch

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert fastrl.is_bitsandbytes_available() is there


def test_strtobool():
    from fastrl.env_utils import strtobool

    assert [strtobool(w) for w in ("Yes", "1", "on", "T")] == [True] * 4
    assert [strtobool(w) for w in ("no", "0", "OFF", "f")] == [False] * 4
    with pytest.raises(ValueError, match="'maybe' means neither"):
        strtobool("maybe")


def test_the_experimental_warning_can_be_silenced():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with import_utils.suppress_experimental_warning():
            warnings.warn("x", import_utils.TRLExperimentalWarning, stacklevel=1)
        with pytest.raises(import_utils.TRLExperimentalWarning):
            warnings.warn("x", import_utils.TRLExperimentalWarning, stacklevel=1)


@pytest.mark.slow
def test_every_name_imports_without_the_optional_packages():
    code = (
        f"import sys\nfor name in {OPTIONAL!r}: sys.modules[name] = None\n"
        "import fastrl\nprint(len([getattr(fastrl, name) for name in fastrl.__all__]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(fastrl.__all__)
