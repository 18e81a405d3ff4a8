"""What the names in a script stand for: imports followed, assignments looked up."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from typing import Any

from fastrl.compat.finder import resolve

_PARSES = ("parse_args_into_dataclasses", "parse_args_and_config", "parse_args")
_PARSERS = ("transformers.HfArgumentParser", "trl.TrlParser")


def arguments(call: ast.Call) -> list[ast.expr | ast.keyword]:
    """The arguments of a call in the order in which they are written."""
    return sorted([*call.args, *call.keywords], key=lambda node: (node.lineno, node.col_offset))


def keywords(call: ast.Call) -> dict[str, ast.keyword]:
    """The keywords of a call by name, those behind `**` left out."""
    return {keyword.arg: keyword for keyword in call.keywords if keyword.arg is not None}


def has_more(call: ast.Call) -> bool:
    """Whether a call has arguments behind `*` or `**`."""
    return any(isinstance(arg, ast.Starred) for arg in call.args) or any(
        keyword.arg is None for keyword in call.keywords
    )


class Names:
    """Which object of TRL or transformers an expression is, as a dotted path ("trl.SFTTrainer").

    A name stands for one thing in the whole file; one that is bound to several is not followed.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.paths: dict[str, str] = {}
        self._values: dict[str, list[ast.expr | None]] = {}  # what a name is assigned
        self._stores: Counter[str] = Counter()
        for node in ast.walk(tree):
            self._read_import(node)
            self._read_binding(node)
        # Last, as the base may be imported anywhere; a class without a constructor has its base's.
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and len(node.bases) == 1 and not _has_init(node):
                base = self.path(node.bases[0])
                if base is not None:
                    self.paths.setdefault(node.name, base)

    def _read_import(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                self.paths[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                self.paths[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def _read_binding(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
            if isinstance(target, ast.Name):
                self._bind(target.id, node.value)
            elif isinstance(target, ast.Tuple | ast.List):
                for place, item in enumerate(target.elts):
                    if isinstance(item, ast.Name):
                        self._bind(item.id, self._parsed(node.value, place))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            self._bind(node.target.id, node.value)
        elif isinstance(node, ast.arg):
            self._bind(node.arg, None)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            self._stores[node.id] += 1

    def _bind(self, name: str, value: ast.expr | None) -> None:
        self._values.setdefault(name, []).append(value)

    @staticmethod
    def _parsed(value: ast.expr, place: int) -> ast.expr | None:
        """A stand-in for item `place` of what a parser returns: the call, marked."""
        called = value.func if isinstance(value, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr in _PARSES:
            return ast.Subscript(value=value, slice=ast.Constant(place))
        return None

    def value(self, node: ast.expr | None) -> ast.expr | None:
        """The expression itself, or what the name was assigned if it was assigned just once."""
        if not isinstance(node, ast.Name):
            return node
        values = self._values.get(node.id, [])
        return values[0] if len(values) == 1 and self._stores[node.id] <= 1 else None

    def path(self, node: ast.expr | None) -> str | None:
        """The dotted path of an imported name or an attribute of one; None for all else."""
        if isinstance(node, ast.Attribute):
            base = self.path(node.value)
            return f"{base}.{node.attr}" if base else None
        if isinstance(node, ast.Name) and node.id not in self._values and not self._stores[node.id]:
            return self.paths.get(node.id)
        return None

    def made_by(self, node: ast.expr | None) -> str | None:
        """The path of the class that an expression is an instance of, as far as the file shows."""
        value = self.value(node)
        if isinstance(value, ast.Subscript) and isinstance(value.slice, ast.Constant):
            return self._dataclass(value.value, value.slice.value)
        if isinstance(value, ast.Call):
            return self.path(value.func)
        return None

    def _dataclass(self, parsing: ast.expr, place: Any) -> str | None:
        """The dataclass that a parser fills at one place of its result."""
        assert isinstance(parsing, ast.Call) and isinstance(parsing.func, ast.Attribute)
        parser = self.value(parsing.func.value)
        if not isinstance(parser, ast.Call) or self.path(parser.func) not in _PARSERS:
            return None
        types = parser.args[0] if parser.args else None
        if isinstance(types, ast.Tuple | ast.List) and isinstance(place, int):
            return self.path(types.elts[place]) if place < len(types.elts) else None
        return self.path(types) if place == 0 else None


def _has_init(node: ast.ClassDef) -> bool:
    return any(isinstance(item, ast.FunctionDef) and item.name == "__init__" for item in node.body)


def of_trl(path: str | None) -> Any:
    """What a path below `trl` or `fastrl` is; None if it is neither, or lacks a package."""
    root, _, below = (path or "").partition(".")
    if root not in ("trl", "fastrl") or not below:
        return None
    module, _, name = below.rpartition(".")
    try:
        return resolve("fastrl", module, name)
    except (ImportError, AttributeError):
        return None


def constructions(tree: ast.Module, names: Names) -> Iterator[tuple[ast.Call, str]]:
    """(call, path of what it calls) for every call of an imported thing.

    In a subclass, `super().__init__(...)` is a call of the base.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and len(node.bases) == 1:
            base = names.path(node.bases[0])
            for inner in ast.walk(node) if base else ():
                if isinstance(inner, ast.Call) and _is_super_init(inner.func):
                    yield inner, base
        if isinstance(node, ast.Call):
            path = names.path(node.func)
            if path is not None:
                yield node, path


def _is_super_init(func: ast.expr) -> bool:
    return (
        isinstance(func, ast.Attribute)
        and func.attr == "__init__"
        and isinstance(func.value, ast.Call)
        and isinstance(func.value.func, ast.Name)
        and func.value.func.id == "super"
    )
