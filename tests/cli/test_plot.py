"""`fastrl plot`: what is drawn, from which lines, and what it refuses."""

from __future__ import annotations

import importlib.util
import json

import pytest

from fastrl.cli.curves import Curve, save_curves, smooth
from fastrl.cli.main import main
from fastrl.cli.plot import curves_of

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def run(tmp_path):
    rows = [
        {"step": step, "time": 1.0, "loss": 3.0 / step, "lr": 0.1, "epoch": 0.1, "note": "text"}
        for step in (1, 2, 3)
    ]
    rows += [{"step": 3, "loss": 0.5, "kl": None}, {"step": 3, "eval_loss": 2.0, "eval_runtime": 1}]
    rows += [{"step": 4, "kl": 7.0, "flag": True}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 5, "lo')
    return tmp_path


def test_curves_are_the_logged_numbers(run):
    curves = curves_of(run)
    assert list(curves) == ["loss", "lr"]  # kl has one number only, epoch and time tell nothing
    assert curves["loss"] == Curve(
        [1, 2, 3], [3.0, 1.5, 0.5], {"evaluation": ([3], [2.0])}
    )  # a step's last line
    assert curves["lr"] == Curve([1, 2, 3], [0.1] * 3)


def test_keys_may_be_chosen(run):
    curves = curves_of(run / "log.jsonl", ["kl", "eval_loss"])
    assert curves == {"kl": Curve([4], [7.0]), "eval_loss": Curve([3], [2.0])}


def test_what_matters_comes_first(tmp_path):
    names = ["zeta", "learning_rate", "grad_norm", "rewards/margins", "a", "b", "c", "loss"]
    rows = [json.dumps({"step": s, **dict.fromkeys(names, 1.0)}) for s in (1, 2)]
    (tmp_path / "log.jsonl").write_text("\n".join(rows))
    assert list(curves_of(tmp_path)) == [
        "loss",
        "rewards/margins",
        "grad_norm",
        "learning_rate",
        "zeta",
        "a",
    ]


def test_the_command_writes_a_png(run, tmp_path, capsys):
    assert main(["plot", str(run)]) == 0
    assert (run / "curves.png").read_bytes().startswith(PNG)
    out = tmp_path / "new" / "one.png"
    assert main(["plot", str(run), "--keys", "kl", "--out", str(out)]) == 0
    assert out.read_bytes().startswith(PNG)
    assert capsys.readouterr().out.split() == [str(run / "curves.png"), str(out)]


def test_what_cannot_be_drawn_is_refused(run, tmp_path):
    with pytest.raises(SystemExit, match="no such log"):
        main(["plot", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="no numbers for 'los'; did you mean 'loss'"):
        main(["plot", str(run), "--keys", "los"])
    (run / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    with pytest.raises(SystemExit, match="no number was logged twice"):
        main(["plot", str(run)])


def test_missing_matplotlib_is_named(run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install matplotlib"):
        main(["plot", str(run)])


def test_smoothing_is_a_centred_mean_that_narrows_at_the_ends():
    assert smooth([0.0, 3.0, 6.0, 3.0, 3.0], 1) == [0.0, 3.0, 4.0, 4.0, 3.0]
    assert smooth([1.0, 2.0], 5) == [1.0, 2.0]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_panels(tmp_path, count):
    path = tmp_path / "curves.png"
    save_curves(path, "title", {f"k{i}": [1.0, 2.0, float(i)] for i in range(count)}, note="note")
    assert path.read_bytes().startswith(PNG)


def test_each_evaluation_set_has_marks_of_its_own(tmp_path):
    rows = [
        {"step": 1, "loss": 3.0, "aux_loss": 1.0},
        {"step": 2, "loss": 2.0, "aux_loss": 1.0},
        {"step": 2, "eval_left_loss": 2.5, "eval_right_loss": 2.6, "eval_aux_loss": 0.9},
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    curves = curves_of(log)
    assert curves["loss"].evaluated == {"left": ([2], [2.5]), "right": ([2], [2.6])}
    assert curves["aux_loss"].evaluated == {"evaluation": ([2], [0.9])}
    assert list(curves) == ["loss", "aux_loss"]
    save_curves(tmp_path / "curves.png", "run", curves)
    assert (tmp_path / "curves.png").stat().st_size > 5000
