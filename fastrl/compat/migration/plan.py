"""What is to become of one call's arguments, collected and then written into the text at once."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from fastrl.compat.migration.names import arguments, keywords
from fastrl.compat.migration.text import Text
from fastrl.legacy.changes import Converted, Ignored, Refused, Renamed, Table

UNKNOWN = object()  # a value that the source does not show


def literal(node: ast.expr) -> Any:
    """The value of an expression of literals, else `UNKNOWN`."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return UNKNOWN


def spelled(value: Any) -> str:
    """A value as source."""
    plain = isinstance(value, str) and value.isprintable() and not {'"', "\\"} & set(value)
    return f'"{value}"' if plain else repr(value)


class Plan:
    """Changes to one call."""

    def __init__(self, text: Text, call: ast.Call) -> None:
        self.text = text
        self.call = call
        self.given = keywords(call)
        self._names: dict[ast.keyword, str] = {}
        self._values: dict[ast.expr, str] = {}
        self._gone: list[ast.expr | ast.keyword] = []
        self._added: dict[str, str] = {}
        self._defaults: dict[str, str] = {}
        self._named: dict[ast.expr, str] = {}
        self._callee: str | None = None

    def becomes(self, callee: str) -> None:
        """Call this instead."""
        self._callee = callee

    def rename(self, old: str, new: str) -> None:
        """Give a keyword its new name."""
        self._names[self.given[old]] = new

    def remove(self, name: str) -> None:
        """Drop a keyword."""
        self._gone.append(self.given[name])

    def by_name(self, argument: ast.expr, name: str) -> None:
        """Pass a positional argument by name."""
        self._named[argument] = name

    def remove_positional(self, argument: ast.expr) -> None:
        """Drop a positional argument; those after it are passed by name."""
        self._gone.append(argument)

    def put(self, name: str, value: str, now: ast.expr | None = None) -> None:
        """Pass this value by the name, whether or not it is passed now (as `now`, if by place)."""
        if now in self.call.args:
            self._values[now] = value  # type: ignore[index]
            return
        for keyword in self.given.values():
            if keyword not in self._gone and self._names.get(keyword, keyword.arg) == name:
                self._values[keyword.value] = value
                return
        self._added[name] = value

    def default(self, name: str, value: str) -> None:
        """Pass a keyword that nothing else of the plan passes, now or later."""
        self._defaults[name] = value

    def write(self) -> None:
        """Make the edits."""
        items = arguments(self.call)
        added = self._defaults | self._added
        if self._callee is not None:
            func = self.call.func
            self.text.replace(self.text.start(func), self.text.end(func), self._callee)
        kept = [item for item in items if item not in self._gone]
        self.text.remove(items, self._gone)
        for keyword, name in self._names.items():
            if keyword in kept:
                start = self.text.start(keyword)
                self.text.replace(start, start + len(str(keyword.arg).encode()), name)
        for argument, name in self._named.items():
            start = self.text.start(argument)
            self.text.replace(start, start, f"{name}=")
        for argument, value in self._values.items():
            self.text.replace(self.text.start(argument), self.text.end(argument), value)
        self.text.append(self.call, self._gone, [f"{n}={v}" for n, v in added.items()])

    # --- the rows of the tables ------------------------------------------------------------------

    def translate(self, owner: str, table: Table, known: set[str]) -> None:
        """Bring the old spellings among the keywords into today's form, or note why not."""
        for name, keyword in self.given.items():
            if name in table and name not in known:
                self._translate(owner, table, name, keyword)

    def _translate(self, owner: str, table: Table, name: str, keyword: ast.keyword) -> None:
        value = literal(keyword.value)
        match table[name]:
            case change if value is None or (isinstance(change, Refused) and change.allows(value)):
                self.remove(name)
            case Renamed(new):
                if new in self.given:
                    self.text.note(keyword, f"{owner} got {new}= and its old name {name}=")
                else:
                    self.rename(name, new)
            case Converted(into, hint, yields):
                try:
                    fields = {} if value is UNKNOWN else into(value)
                except (TypeError, ValueError) as error:
                    self.text.note(keyword, f"{owner}: {name}= is {hint} ({error})")
                    return
                clash = fields.keys() & self.given.keys()
                if value is UNKNOWN or (clash and not yields):
                    self.text.note(keyword, f"{owner}: {name}= is {hint}")
                    return
                self.remove(name)
                self._put_fields(fields, clash)
            case Ignored(why):
                self.remove(name)
                self.text.note(keyword, f"{owner}: {name}= is left out, it has no effect: {why}")
            case Refused(instead):
                self.text.note(keyword, f"{owner} no longer takes {name}=: {instead}")

    def _put_fields(self, fields: Mapping[str, Any], clash: set[str]) -> None:
        """Add what a field was converted into; one given beside it wins unless it is 0."""
        for name, value in fields.items():
            if name not in clash or not literal(self.given[name].value):
                self.put(name, spelled(value))
