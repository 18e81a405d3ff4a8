"""A tracker that keeps what it is given, and stands in for a package that is not installed."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker


class Recorder(GeneralTracker):
    """Keeps what it is given; any tracker of accelerate's kind is one."""

    name = "recorder"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, name: str = "", **settings: Any) -> None:
        super().__init__()
        self.settings, self.config, self.logged = settings, None, []

    @property
    def tracker(self) -> Any:
        return self

    def start(self) -> None:
        """Newer releases call it."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.logged.append((values, step))


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str) -> type[Recorder]:
    """Have accelerate find a tracker of this name: the class that is returned."""
    package = types.ModuleType(name)
    package.__spec__ = importlib.util.spec_from_loader(name, None)
    package.Table = lambda columns, rows: (columns, rows)
    monkeypatch.setitem(sys.modules, name, package)
    kind = type("StandIn", (Recorder,), {"name": name})
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, kind)
    there = [*tracking.get_available_trackers(), tracking.LoggerType(name)]
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: there)
    monkeypatch.setattr(tracking, "_available_trackers", there, raising=False)
    return kind
