"""Modules that exist only as names: TRL's paths under `fastrl.`, made at import from `MODULES`.

A virtual module holds nothing. A name is looked up where `MODULES` says that it lives, at first
use, so importing one loads no model library. Real files win over the table; the packages that are
both (`fastrl.models`, `fastrl.rewards`) get the table's names beside their own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import FrameType, ModuleType
from typing import Any

from fastrl.compat.missing import explain
from fastrl.compat.modules import MODULES

_OF = "the names of TRL"  # __spec__.origin of a virtual module


def resolve(root: str, module: str, name: str) -> Any:
    """What `name` is in the module that TRL calls `module` ("" for the top level).

    Args:
        root: the package under which the modules stand, "fastrl".
        module: path below the root, such as "trainer.utils".
        name: an attribute: a class, a function, a constant or a module below.

    Raises:
        AttributeError: there is no such name; the message says what to use.
    """
    home = MODULES.get(module, {}).get(name)
    if home is not None:
        path, _, attribute = home.partition(":")
        return getattr(importlib.import_module(path), attribute or name)
    below = f"{module}.{name}" if module else name
    if below in MODULES:
        return importlib.import_module(f"{root}.{below}")
    raise AttributeError(explain(root, module, name))


def names_in(module: str) -> list[str]:
    """Every name of a module of TRL's, the modules below it too, in alphabetical order."""
    prefix = f"{module}." if module else ""
    below = {m[len(prefix) :] for m in MODULES if m and m.startswith(prefix)}
    return sorted(MODULES.get(module, {}).keys() | {m for m in below if "." not in m})


def answer(root: str, module: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of the module that TRL calls `module`."""

    def __getattr__(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {_dotted(root, module)!r} has no attribute {name!r}")
        return resolve(root, module, name)

    def __dir__() -> list[str]:
        present = vars(sys.modules[_dotted(root, module)])
        return sorted({*present, *present["__all__"], *names_in(module)})

    return __getattr__, __dir__


def _dotted(root: str, module: str) -> str:
    return f"{root}.{module}" if module else root


class _Virtual(Loader):
    """Makes the module from the table alone."""

    def __init__(self, root: str, module: str) -> None:
        self.root = root
        self.module = module

    def create_module(self, spec: ModuleSpec) -> None:
        """The import system's own kind of module does."""

    def exec_module(self, module: ModuleType) -> None:
        """Give it its names; those that a reload finds from before go."""
        for name in MODULES[self.module].keys() & vars(module).keys():
            delattr(module, name)
        module.__doc__ = f"Names of TRL's `{self.module}`, where fastrl has them."
        module.__all__ = sorted(MODULES[self.module])  # type: ignore[attr-defined]
        getter, lister = answer(self.root, self.module)
        module.__dict__.update(__getattr__=getter, __dir__=lister)


class _Extended(SourceFileLoader):
    """Loads a real package and gives it the table's names beside its own."""

    def __init__(self, path: str, root: str, module: str) -> None:
        super().__init__(_dotted(root, module), path)
        self.below = (root, module)

    def exec_module(self, module: ModuleType) -> None:
        """The package's file, then what it does not name itself."""
        super().exec_module(module)
        own = module.__dict__.get("__getattr__")
        getter, lister = answer(*self.below)

        def __getattr__(name: str) -> Any:
            if own is not None and name in module.__all__:
                return own(name)
            return getter(name)

        module.__dict__.update(__getattr__=__getattr__, __dir__=lister)


class Finder(MetaPathFinder):
    """Answers imports under one package from `MODULES`.

    Args:
        root: the package, "fastrl".
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's specification, or None if it is none of the table's.

        Raises:
            ImportError: while importing, for a name that is not here: the message says what to
                use. `importlib.util.find_spec` gets None.
        """
        prefix = f"{self.root}."
        if not fullname.startswith(prefix):
            return None
        real = PathFinder.find_spec(fullname, path, target)
        module = fullname[len(prefix) :]
        if module in MODULES:
            return self._extended(real, module) if real else self._virtual(fullname, module)
        if real is None and sys._getframe(2).f_code.co_name != "find_spec":  # importlib.util's
            refuse(self.root, module, sys._getframe(2))
        return real

    def _virtual(self, fullname: str, module: str) -> ModuleSpec:
        # A package, as `from module import name` asks the finder for a missing name of one only.
        return ModuleSpec(fullname, _Virtual(self.root, module), origin=_OF, is_package=True)

    def _extended(self, real: ModuleSpec, module: str) -> ModuleSpec:
        if real.origin is not None and isinstance(real.loader, SourceFileLoader):
            real.loader = _Extended(real.origin, self.root, module)
        return real


def refuse(root: str, module: str, importing: FrameType) -> None:
    """Raise for what a module of TRL's lacks; what is below others is none of our affair.

    Args:
        root: the package under which it was asked for: "fastrl", or "trl" where fastrl answers it.
        module: path below the root of what was not found.
        importing: the frame of the import system that called the finder's caller.

    Raises:
        ImportError: the message says what to use.
    """
    parent, _, name = module.rpartition(".")
    if parent and parent not in MODULES:
        return
    said = explain(root, parent, name)
    if _wants_a_name(importing):
        # An error that named the missing module would be taken for one that does not matter.
        raise ImportError(said, name=_dotted(root, parent))
    full = _dotted(root, module)
    raise ModuleNotFoundError(f"No module named {full!r}: {said}", name=full)


def _wants_a_name(frame: FrameType | None) -> bool:
    """Whether the import system is on its way from `from module import name`."""
    while frame is not None and "importlib._bootstrap" in frame.f_code.co_filename:
        if frame.f_code.co_name == "_handle_fromlist":
            return True
        frame = frame.f_back
    return False


def install(root: str = "fastrl") -> Finder:
    """Put one finder for the modules under `root` on `sys.meta_path`, the first time it is called.

    Returns:
        the finder that is there now.
    """
    for finder in sys.meta_path:
        if isinstance(finder, Finder) and finder.root == root:
            return finder
    made = Finder(root)
    sys.meta_path.insert(0, made)
    return made
