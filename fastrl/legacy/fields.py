"""Config fields under the names they had since TRL 0.7, for configs on top of TrainingArguments."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastrl.legacy import closest
from fastrl.legacy.changes import Table, settle
from fastrl.legacy.generation import pinned

_Class = TypeVar("_Class", bound=type)


def accepts_legacy_fields(
    table: Table, was: Mapping[str, Mapping[str, Any]] | None = None, beside: Sequence[str] = ()
) -> Callable[[_Class], _Class]:
    """Class decorator for a config dataclass: it also takes the fields in `table`.

    One FutureWarning a construction names every new spelling. The table stays readable at
    `cls._legacy_fields`, where the command line finds the old flags, and `was` at
    `cls._was_defaults`.

    Args:
        table: the old spellings.
        was: generation ("0.7", "0.11") -> today's fields -> the defaults they had then. They hold
            for fields that are not given while `set_api` pins that generation.
        beside: attributes that the constructor sets though they are no fields (any more): other
            configs have them now, and one command line may fill both. Of an object, though not of
            the class, they are fields: `dataclasses.replace` and `asdict` take them along.

    Raises (when constructed):
        TypeError: an unknown field (with the closest known one), one given under two names, one
            that can no longer be honoured (with what to write instead).
    """

    def decorate(cls: _Class) -> _Class:
        plain_init = cls.__init__
        known = [f.name for f in dataclasses.fields(cls) if f.init]

        @functools.wraps(plain_init)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            for name in beside:
                if name in kwargs:
                    setattr(self, name, kwargs.pop(name))
            fields, told = translate_fields(cls.__name__, known, table, kwargs)
            if told:
                message = f"{cls.__name__}, old spellings: {'; '.join(told)}"
                warnings.warn(message, FutureWarning, stacklevel=2)
            then = cls._was_defaults.get(pinned() or "1", {})
            given = {*known[: len(args)], *fields}
            left = {name: value for name, value in then.items() if name not in given}
            plain_init(self, *args, **left, **fields)

        cls.__init__ = __init__
        cls._legacy_fields = table
        cls._was_defaults = was or {}
        cls._beside_fields = tuple(beside)
        if beside:
            cls.__dataclass_fields__ = _Fields(cls, beside)
        return cls

    return decorate


class _Fields:
    """`__dataclass_fields__` of a class; its objects have some more, with the class's defaults."""

    def __init__(self, cls: Any, more: Sequence[str]) -> None:
        self.own = cls.__dataclass_fields__
        rows = [(name, Any, dataclasses.field(default=getattr(cls, name))) for name in more]
        self.more = dataclasses.make_dataclass("More", rows).__dataclass_fields__

    def __get__(self, instance: Any, owner: type) -> dict[str, Any]:
        return self.own if instance is None else self.own | self.more


def translate_fields(
    owner: str, known: list[str], table: Table, given: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """(today's fields, a phrase for each old spelling). Raises TypeError as the decorator says."""
    fields = {name: value for name, value in given.items() if name in known}
    old = {name: value for name, value in given.items() if name not in known}
    for name in old:
        if name not in table:
            raise TypeError(f"{owner} has no field {name!r}{closest(name, [*known, *table])}")
    settled = settle(owner, owner, table, old)
    for name, value in settled.arguments.items():
        if name in settled.yielding:
            value = fields.get(name) or value
        elif name in fields:
            raise TypeError(f"{owner} got {name}= both by that name and by an older one")
        fields[name] = value
    return fields, settled.told
