"""How a changed value of a field is looked for.

`Changes` runs a trainer without and with it; `Refused` is an error that names it; `Same` is a field
that TRL has and that decides nothing here, which its help says; `Seen` looks at one place by itself
(see `places.py` and `vllm_places.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.customisation import runs
from tests.customisation.classic import Filled, Steps, Wrong
from tests.customisation.diffusing import Draws


@dataclass(frozen=True)
class Changes:
    """What a run shows changes with the value: in its `log` unless `by` says where."""

    kind: str
    value: Any
    given: dict[str, Any] = field(default_factory=dict)
    by: str = "log"

    def check(self, name: str) -> None:
        value = self.value() if callable(self.value) else self.value
        given = {k: v() if callable(v) else v for k, v in self.given.items()}
        before = runs.outcome(self.kind, given)
        after = runs.outcome(self.kind, {**given, name: value})
        assert getattr(after, self.by) != getattr(before, self.by), f"{name}={value!r}: no change"


@dataclass(frozen=True)
class Refused:
    """Construction of config or trainer raises."""

    kind: str
    value: Any
    said: str
    given: dict[str, Any] = field(default_factory=dict)
    error: type[Exception] = ValueError

    def check(self, name: str) -> None:
        import pytest

        with pytest.raises(self.error, match=self.said):
            runs.run(self.kind, {**self.given, name: self.value})


@dataclass(frozen=True)
class Same:
    """The runs are equal, and the field's help says that it is accepted either way."""

    kind: str
    value: Any
    given: dict[str, Any] = field(default_factory=dict)

    def check(self, name: str) -> None:
        config = runs.KINDS[self.kind][1]
        words = config.__dataclass_fields__[name].metadata["help"].lower()
        assert "either way" in words or "whatever this says" in words
        before = runs.outcome(self.kind, self.given)
        after = runs.outcome(self.kind, {**self.given, name: self.value})
        assert after.log == before.log and after.weights == before.weights


@dataclass(frozen=True)
class Seen:
    """A function of `places` that raises if the field is not read."""

    look: Callable[[str], None]

    def check(self, name: str) -> None:
        self.look(name)


Probe = Changes | Refused | Same | Seen | Steps | Filled | Wrong | Draws
