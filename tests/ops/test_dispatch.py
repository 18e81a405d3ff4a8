"""The door to the backends: forced, chosen, refused."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch

import fastrl
from fastrl.ops import BackendUnavailable, _dispatch, _native, forced_backend, use_backend

X = torch.zeros(2)


class Reference:
    pass


class Cpp:
    pass


@pytest.fixture
def op(monkeypatch):
    monkeypatch.setattr(_dispatch, "OPS", {})
    monkeypatch.setattr(_native, "missing", lambda kind: None if kind == "cpu" else f"no {kind}")
    return _dispatch.Op("made_up", reference=Reference, cpp=Cpp, cuda="nowhere.to_be_found")


@pytest.fixture(autouse=True)
def nothing_forced():
    with use_backend(None):
        yield


def test_the_best_backend_of_the_device_is_chosen(op):
    assert op.pick(X) is Cpp
    assert op.pick(X.to("meta")) is Reference
    assert op.pick(X.double()) is Reference


def test_wrapped_tensors_go_to_the_reference(op):
    assert op.pick(X.as_subclass(type("Wrapped", (torch.Tensor,), {}))) is Reference
    picked = []
    torch.func.grad(lambda x: (picked.append(op.pick(x)), x.sum())[1])(X)
    assert picked == [Reference]


def test_forcing_nests_and_ends(op):
    assert forced_backend() is None
    with use_backend("reference"):
        assert op.pick(X) is Reference
        with use_backend("cpp"):
            assert op.pick(X) is Cpp
        assert forced_backend() == "reference"
    assert forced_backend() is None
    use_backend("reference")
    assert op.pick(X) is Reference
    use_backend(None)
    assert op.pick(X) is Cpp


def test_an_exception_ends_the_block_too(op):
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert forced_backend() is None


@pytest.mark.parametrize(
    "name, tensor, words",
    [
        ("cuda", X, "made_up: backend 'cuda' was asked for: no cuda"),
        ("triton", X, "made_up has no triton backend"),
        ("cpp", X.double(), "float64 is served by the reference only"),
        ("cpp", X.to("meta"), "is on meta, the backend serves cpu"),
    ],
)
def test_a_forced_backend_never_gives_way(op, name, tensor, words):
    with use_backend(name), pytest.raises(BackendUnavailable, match=words):
        op.pick(tensor)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'gpu' is no backend; choose one of reference, cpp"):
        use_backend("gpu")
    assert forced_backend() is None


def test_a_missing_library_gives_its_recorded_reason(monkeypatch, tmp_path):
    record = tmp_path / "_build_info.json"
    monkeypatch.setattr(_native, "_BUILD_INFO", record)
    assert "setup.py build_ext --inplace" in _native._not_built("cpu")
    record.write_text(json.dumps({"reason": {"cpu": "the compiler is on holiday"}}))
    assert _native._not_built("cpu") == "the compiler is on holiday"
    record.write_text("{ half a file")
    assert "was not built" in _native._not_built("cpu")


@pytest.fixture
def package_folder(monkeypatch, tmp_path):
    """Another folder for the package, and nothing remembered of the real one."""
    monkeypatch.setattr(_native, "_PACKAGE", tmp_path)
    monkeypatch.setattr(_native, "_BUILD_INFO", tmp_path / "_build_info.json")
    _native._imported.cache_clear()
    yield tmp_path
    _native._imported.cache_clear()


def test_the_library_of_another_installation_does_not_count(package_folder, monkeypatch):
    stranger = types.ModuleType("fastrl._core_cpu")
    monkeypatch.setitem(sys.modules, "fastrl._core_cpu", stranger)
    assert "was not built" in _native.missing("cpu")


def test_a_library_that_does_not_load_says_why(package_folder, monkeypatch):
    monkeypatch.delitem(sys.modules, "fastrl._core_cpu", raising=False)
    (package_folder / "_core_cpu.py").write_text("raise ImportError('undefined symbol: omp_x')")
    monkeypatch.setattr(fastrl, "__path__", [str(package_folder)])
    assert "does not load: undefined symbol" in _native.missing("cpu")


def test_a_pointer_of_strided_memory_is_refused():
    assert _native.pointer(X) == X.data_ptr()
    with pytest.raises(RuntimeError, match="not contiguous"):
        _native.pointer(torch.zeros(3, 4).T)
