"""`import trl` answered by fastrl: in this process, and in the Python processes it starts.

`trl.core`, `trl.trainer.utils` and every other module below `trl` are the very objects of the same
path below `fastrl`: one class has one identity, whichever name it was asked by. `trl` itself is a
module of its own that reads everything from `fastrl` but the version: `trl.__version__` and
`importlib.metadata.version("trl")` are those of the release that the pinned API stands for
(`fastrl.set_api`, `FASTRL_API`; 1.16.0 where nothing is pinned), so that a script that compares
versions goes the way it was written for, while `fastrl.__version__` stays fastrl's.

Children get the folder `startup` at the front of PYTHONPATH, whose `sitecustomize` calls
`install_as_trl` when their interpreter starts: before any import of theirs, for probes
(`find_spec`, metadata) as for imports, by whatever program started them. A stub package `trl` on
the path would answer imports alone, and a `.pth` file would change an environment for good. Only
an interpreter started with -E, -I or -S, which read no environment, does not see it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import fastrl
from fastrl.compat.finder import refuse
from fastrl.legacy.generation import pinned

_STARTUP = str(Path(__file__).parent / "startup")
# Folders of TRL's that hold files, and where fastrl has those.
_FOLDERS = {"trl.accelerate_configs": "fastrl.cli.accelerate_configs"}
# Pinned API -> the release it stands for.
RELEASES = {"0.7": "0.7.11", "0.11": "0.11.4", "1": "1.16.0"}


def trl_version() -> str:
    """The release of TRL that fastrl stands for: that of the pinned API, else the latest."""
    return RELEASES[pinned() or "1"]


def _twin(name: str) -> str:
    """trl.core -> fastrl.core"""
    return _FOLDERS.get(name) or f"fastrl{name.removeprefix('trl')}"


class _Trl(ModuleType):
    """The module `trl`: fastrl under the version of the pinned API."""

    @property
    def __version__(self) -> str:
        return trl_version()

    @property
    def __all__(self) -> list[str]:
        return fastrl.__all__

    def __getattr__(self, name: str) -> Any:
        return getattr(fastrl, name)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *dir(fastrl)})


class _Alias(Loader):
    """Gives the module of fastrl under its name below `trl`."""

    def __init__(self, twin: str) -> None:
        self.twin = twin

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The one module there is, which this spec is about to be written into."""
        if self.twin == "fastrl":
            return _Trl("trl", fastrl.__doc__)
        module = importlib.import_module(self.twin)
        self.own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has been executed under its own name; its spec is its own again."""
        if self.twin != "fastrl":
            module.__spec__ = self.own

    def get_code(self, name: str) -> CodeType | None:
        """For `python -m trl.…`."""
        return self._own_loader().get_code(self.twin)

    def get_resource_reader(self, name: str) -> Any:
        """For `importlib.resources.files("trl")`."""
        return self._own_loader().get_resource_reader(self.twin)

    def _own_loader(self) -> Any:
        return importlib.util.find_spec(self.twin).loader  # type: ignore[union-attr]


class _Finder(MetaPathFinder):
    """Answers `trl` and what is below it, and the metadata of a distribution of that name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of fastrl's module under the name asked for, or None.

        Raises:
            ImportError: while importing, for a name that is not here: the message says what to
                use.
        """
        if fullname != "trl" and not fullname.startswith("trl."):
            return None
        twin = _twin(fullname)
        found = importlib.util.find_spec(twin)
        if found is None:
            # `importlib.util.find_spec` only asks; an import gets an error that explains.
            if sys._getframe(2).f_code.co_name != "find_spec":
                refuse("trl", fullname.removeprefix("trl."), sys._getframe(2))
            return None
        below = found.submodule_search_locations
        spec = ModuleSpec(fullname, _Alias(twin), origin=found.origin, is_package=below is not None)
        if below is not None:
            spec.submodule_search_locations = list(below)
        spec.has_location = found.has_location
        return spec

    def find_distributions(self, context: Any = None) -> Iterator[Any]:
        """The distribution `trl`, for `importlib.metadata`."""
        from fastrl.compat.trl_metadata import TrlDistribution

        name = getattr(context, "name", None)
        if name is None or name.lower() == "trl":
            yield TrlDistribution()


def _installed() -> _Finder | None:
    return next((finder for finder in sys.meta_path if isinstance(finder, _Finder)), None)


def _say_who_is_passed_over() -> None:
    real = PathFinder.find_spec("trl")
    if real is not None:
        warnings.warn(
            f"`import trl` means fastrl from here on, not the package at {real.origin}",
            stacklevel=3,
        )


def install_as_trl(children: bool = True) -> None:
    """From here on `trl` is fastrl: imports, metadata, resources, pickles, child processes.

    A package `trl` that is installed and not yet imported is passed over, and a warning says so. A
    second call changes nothing.

    Args:
        children: whether Python processes that this one starts do the same (through `PYTHONPATH`
            in `os.environ`).

    Raises:
        ImportError: another `trl` has been imported already; nothing is changed then.
    """
    if _installed() is None:
        imported = sys.modules.get("trl")
        if imported is not None:
            raise ImportError(
                f"install_as_trl() comes too late: `trl` has been imported from "
                f"{getattr(imported, '__file__', None)}; call it first, or start the script by "
                "`fastrl run`",
                name="trl",
            )
        if _STARTUP not in _python_path():  # or the parent process has said it
            _say_who_is_passed_over()
        sys.meta_path.insert(0, _Finder())
        importlib.invalidate_caches()
    if children:
        _tell_children()


def uninstall_as_trl() -> None:
    """Undo `install_as_trl`: `trl` is again whatever is installed; objects imported stay."""
    finder = _installed()
    if finder is None:
        return
    sys.meta_path.remove(finder)
    for name in [n for n in sys.modules if n == "trl" or n.startswith("trl.")]:
        del sys.modules[name]
    rest = [folder for folder in _python_path() if folder != _STARTUP]
    if rest:
        os.environ["PYTHONPATH"] = os.pathsep.join(rest)
    else:
        os.environ.pop("PYTHONPATH", None)


def _python_path() -> list[str]:
    given = os.environ.get("PYTHONPATH", "")
    return given.split(os.pathsep) if given else []


def _tell_children() -> None:
    rest = [folder for folder in _python_path() if folder != _STARTUP]
    os.environ["PYTHONPATH"] = os.pathsep.join([_STARTUP, *rest])
