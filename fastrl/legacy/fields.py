"""Config fields under the names they had since TRL 0.7, for configs on top of TrainingArguments."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from fastrl.legacy import closest
from fastrl.legacy.changes import Table, settle

_Class = TypeVar("_Class", bound=type)


def accepts_legacy_fields(table: Table) -> Callable[[_Class], _Class]:
    """Class decorator for a config dataclass: it also takes the fields in `table`.

    One FutureWarning a construction names every new spelling. The table stays readable at
    `cls._legacy_fields`, where the command line finds the old flags.

    Raises (when constructed):
        TypeError: an unknown field (with the closest known one), one given under two names, one
            that can no longer be honoured (with what to write instead).
    """

    def decorate(cls: _Class) -> _Class:
        plain_init = cls.__init__
        known = [f.name for f in dataclasses.fields(cls) if f.init]

        @functools.wraps(plain_init)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            fields, told = translate_fields(cls.__name__, known, table, kwargs)
            if told:
                message = f"{cls.__name__}, old spellings: {'; '.join(told)}"
                warnings.warn(message, FutureWarning, stacklevel=2)
            plain_init(self, *args, **fields)

        cls.__init__ = __init__
        cls._legacy_fields = table
        return cls

    return decorate


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
