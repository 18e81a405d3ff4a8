"""Seconds of blocks and methods, as loggers are told of them."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest

from fastrl.extras.profiling import ProfilingContext, profiling_context, profiling_decorator


@pytest.fixture
def told(monkeypatch):
    """(logger, metrics, keywords) of each call; all three have a run."""
    calls = []

    def log(name):
        return lambda metrics, **more: calls.append((name, metrics, more))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run="run", log=log("wandb")))
    mlflow = SimpleNamespace(active_run=lambda: "run", log_metrics=log("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(log=log("trackio")))
    return calls


class Trainer:
    def __init__(self, *report_to, main=True):
        self.args = SimpleNamespace(report_to=list(report_to))
        self.accelerator = SimpleNamespace(is_main_process=main)
        self.state = SimpleNamespace(global_step=7)

    @profiling_decorator
    def work(self, seconds, fail=False):
        """Work."""
        time.sleep(seconds)
        if fail:
            raise RuntimeError
        return "done"


def test_a_method_is_timed_under_its_class_and_name(told):
    assert Trainer("wandb", "mlflow", "trackio").work(0.02) == "done"
    assert Trainer.work.__doc__ == "Work."
    key = "profiling/Time taken: Trainer.work"
    assert [name for name, *_ in told] == ["wandb", "mlflow", "trackio"]
    assert [more for *_, more in told] == [{}, {"step": 7}, {"step": 7}]
    for _, metrics, _ in told:
        assert metrics.keys() == {key} and 0.02 <= metrics[key] < 2


def test_a_block_and_one_that_fails(told):
    with profiling_context(Trainer("wandb"), "block"):
        pass
    with pytest.raises(RuntimeError):
        Trainer("wandb").work(0, fail=True)
    with ProfilingContext("mine", ["mlflow"], step=3, metric_prefix="seconds"):
        pass
    names = [next(iter(metrics)) for _, metrics, _ in told]
    assert names[:2] == [f"profiling/Time taken: Trainer.{name}" for name in ("block", "work")]
    assert names[2] == "seconds: mine" and told[2][2] == {"step": 3}


def test_who_is_not_told(told, monkeypatch):
    Trainer("wandb", "mlflow", main=False).work(0)
    Trainer("none").work(0)
    sys.modules["wandb"].run = None
    sys.modules["mlflow"].active_run = lambda: None
    Trainer("wandb", "mlflow", "tensorboard").work(0)
    monkeypatch.delitem(sys.modules, "trackio")
    Trainer("trackio").work(0)
    assert told == []
