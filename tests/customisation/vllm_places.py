"""Where the fields of vLLM are read: its engine in this process, and its server."""

from __future__ import annotations

import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.customisation import runs
from tests.customisation.places import ROOT, Look, built


@contextmanager
def _stand_in() -> Any:
    """The tests' own vLLM."""
    with tempfile.TemporaryDirectory() as place:
        facts = Path(place) / "vllm-0.31.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.31.0\n")
        added = [str(ROOT / "tests" / "rollout" / "fake_vllm"), place]
        sys.path[:0] = added
        try:
            import vllm

            yield vllm
        finally:
            for path in added:
                sys.path.remove(path)
            for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
                del sys.modules[name]


def _by_vllm(kind: str, **settings: Any) -> Any:
    source = str(runs.folder() / "policy")
    return built(kind, use_vllm=True, _by_name=source, **settings)


def absent_vllm(name: str) -> None:
    missing = pytest.raises(ImportError, match=f"{name}: vLLM is not installed")
    with missing, built("grpo", **{name: True}):
        pass


def vllm(argument: str, value: Any, kind: str = "grpo") -> Look:
    """The engine in this process gets the field as that argument."""

    def look(name: str) -> None:
        with _stand_in() as package:
            of = {"grpo": "grpo", "online": "online_dpo"}[kind]
            with _by_vllm(of):
                assert package.LLM.made[-1].arguments[argument] != value
            with _by_vllm(of, **{name: value}):
                assert package.LLM.made[-1].arguments[argument] == value

    return look


def vllm_regex(name: str) -> None:
    with _stand_in(), _by_vllm("grpo", **{name: "[a-z]+"}) as trainer:
        engine = trainer._collecting._drawing._vllm
        assert engine._draws.structure == {"regex": "[a-z]+"}


def vllm_parallel(name: str) -> None:
    refused = pytest.raises(ValueError, match=f"{name}=2 must divide")
    with _stand_in(), refused, _by_vllm("grpo", **{name: 2}):
        pass


@contextmanager
def _connected() -> Any:
    """What a trainer asks of a server, which is not there."""
    from fastrl.rollout import vllm_server

    asked: dict[str, Any] = {}

    class Http:
        def __init__(self, base_url: str) -> None:
            self.base_url = asked["url"] = base_url

        def wait(self, seconds: float) -> None:
            asked["timeout"] = seconds

        def get(self, path: str) -> Any:
            return {"data": [{"id": "policy"}]}

    def transfer(_: Any, __: Any, port: int, ___: Any) -> None:
        asked["group"] = port

    with (
        _stand_in(),
        patch.object(vllm_server, "Http", Http),
        patch.object(vllm_server, "Transfer", transfer),
        patch.object(vllm_server.Server, "_check_server", lambda _: None),
    ):
        yield asked


def vllm_server(value: Any) -> Look:
    """The value is what the server is looked for by, and was not without it."""

    def look(name: str) -> None:
        with _connected() as asked:
            with _by_vllm("grpo", vllm_mode="server"):
                before = dict(asked)
            with _by_vllm("grpo", vllm_mode="server", **{name: value}):
                pass
        (changed,) = [key for key in asked if asked[key] != before[key]]
        assert str(value) in str(asked[changed])

    return look


def vllm_mode(name: str) -> None:
    with _connected() as asked:
        with _by_vllm("grpo"):
            assert asked == {}
        with _by_vllm("grpo", **{name: "server"}):
            assert asked["url"] == "http://0.0.0.0:8000"
