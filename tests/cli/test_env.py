"""`fastrl env` tells the truth about backends, in words and as JSON."""

from __future__ import annotations

import json

import pytest

import fastrl
from fastrl.cli.main import main
from fastrl.ops import _dispatch, _native


def test_every_operation_has_a_line_and_every_lack_a_reason(capsys):
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"fastrl {fastrl.__version__} in ")
    for name, missing in _dispatch.table():
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [name]]
        cells = line.split()[1:]
        assert cells[0] == "yes"
        for cell, (backend, reason) in zip(cells, missing.items(), strict=True):
            there = _dispatch.OPS[name].has(backend)
            assert cell == ("-" if not there else "yes" if reason is None else "no")
    for backend in _dispatch.BACKENDS:
        reason = _dispatch.backend_missing(backend)
        assert reason is None or f"{backend}: {reason}" in text


def test_json_holds_the_same(capsys):
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["operations"] == dict(_dispatch.table())
    assert set(found["native"]) == {"cpu", "cuda"}
    assert found["packages"]["torch"]


def test_a_missing_library_is_told_with_its_reason(capsys, monkeypatch):
    monkeypatch.setattr(_native, "missing", lambda kind: f"the {kind} dog ate it")
    assert main(["env", "--native"]) == 0
    text = capsys.readouterr().out
    assert "cpu   no: the cpu dog ate it" in text
    assert "reference backend" in text


def test_the_forced_backend_shows(capsys):
    with _dispatch.use_backend("reference"):
        main(["env"])
    assert "forced backend: reference" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["env", "--nonsense"]])
def test_a_wrong_command_line_stops_with_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: fastrl" in capsys.readouterr().err
