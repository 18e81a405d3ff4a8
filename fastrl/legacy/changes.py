"""What became of an old spelling: the rows of the tables that constructors and configs state.

A value of None says that nothing was chosen, under every row: today's default then holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Renamed:
    """Same meaning under a new name, at the same place."""

    new: str


@dataclass(frozen=True)
class Moved:
    """An argument of the constructor that is now a field of the trainer's config."""

    field: str
    values: Mapping[str, str] = field(default_factory=dict)  # old value -> today's; others stay


@dataclass(frozen=True)
class Converted:
    """`into(value)` are the fields that say the same today; `hint` is how a reader writes them."""

    into: Callable[[Any], dict[str, Any]]
    hint: str
    yields: bool = False  # to a field given beside it that is not 0 (else both are an error)


@dataclass(frozen=True)
class Ignored:
    """Accepted with a warning: it no longer acts; `why` says what acts in its place, if any."""

    why: str


@dataclass(frozen=True)
class Refused:
    """It would change results and cannot be honoured; `instead` is what to write."""

    instead: str
    harmless: tuple[Any, ...] = (False,)  # values (beside None) that ask for nothing: dropped

    def allows(self, value: Any) -> bool:
        """Whether the value asks for nothing (False and 0 are told apart)."""
        return any(type(value) is type(h) and value == h for h in self.harmless)


Change = Renamed | Moved | Converted | Ignored | Refused
Table = Mapping[str, Change]


@dataclass
class Settled:
    """Old spellings sorted into what to pass on and what to tell."""

    arguments: dict[str, Any] = field(default_factory=dict)  # today's names at the same place
    yielding: set[str] = field(default_factory=set)  # those that one given beside them overrides
    fields: dict[str, Any] = field(default_factory=dict)  # for the config
    told: list[str] = field(default_factory=list)  # one phrase for each old spelling


def settle(owner: str, config: str, table: Table, given: Mapping[str, Any]) -> Settled:
    """Translate the old spellings in `given` (all of them in `table`).

    Args:
        owner: name of the class that is called, for messages.
        config: name of the config class that `Moved` arguments went to.

    Raises:
        TypeError: a spelling that cannot be honoured; the message says what to write.
    """
    settled = Settled()
    for name, value in given.items():
        change = table[name]
        if value is None or (isinstance(change, Refused) and change.allows(value)):
            continue
        match change:
            case Renamed(new):
                settled.arguments[new] = value
                settled.told.append(f"{name}= is {new}=")
            case Moved(target, values):
                known = isinstance(value, str) and value in values
                settled.fields[target] = values[value] if known else value
                settled.told.append(f"{name}= is {config}({target}=...)")
            case Converted(into, hint, yields):
                fields = into(value)
                settled.arguments |= fields
                settled.yielding |= fields.keys() if yields else set()
                settled.told.append(f"{name}= is {hint}")
            case Ignored(why):
                settled.told.append(f"{name}= has no effect: {why}")
            case Refused(instead):
                raise TypeError(f"{owner} no longer takes {name}={value!r}: {instead}")
    return settled
