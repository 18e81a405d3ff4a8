"""`fastrl run script.py`: a script written for TRL, untouched, with `trl` answered by fastrl.

It runs as `python script.py` would run it: its own `__main__`, arguments and search path, exit
status and traceback. Keywords and names that transformers has given up since work again
(`fastrl.compat.transformers_patch`).
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any
from zipfile import is_zipfile

from fastrl.compat.as_trl import install_as_trl
from fastrl.compat.transformers_patch import patch_transformers

HELP = "run a script written for TRL: `trl` is fastrl, and old spellings work"
ABOUT = (
    "Run SCRIPT (a file, or a folder or archive with __main__.py; after -m, a module) as python "
    "does, with `trl` answered by fastrl. --accelerate_config single_gpu|multi_gpu|zero1|zero2|"
    "zero3|fsdp1|fsdp2|FILE and any flag of `accelerate launch`, before SCRIPT, start several "
    "processes."
)
_MODULE = ("-m", "--module")


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, usage=f"{prog} [FLAGS] SCRIPT ...", description=ABOUT
    )
    parser.add_argument("script", metavar="SCRIPT")
    return parser


def _separate(words: Sequence[str]) -> tuple[list[str], str | None, bool, list[str]]:
    """(flags for accelerate, its configuration, whether a module is run, SCRIPT and its words).

    Raises:
        ValueError: no SCRIPT, or a flag that is none of accelerate's.
    """
    if words and not words[0].startswith("-"):
        return [], None, False, list(words)
    if len(words) > 1 and words[0] in _MODULE:
        return [], None, True, list(words[1:])
    from accelerate.commands.launch import launch_command_parser

    from fastrl.cli.launch import ACCELERATE_CONFIG, take

    parser = launch_command_parser()
    parser.add_argument(ACCELERATE_CONFIG)
    parser.error = _raise  # type: ignore[method-assign]
    parsed = parser.parse_args(list(words))
    own = [parsed.training_script, *parsed.training_script_args]
    flags, _ = take(words[: len(words) - len(own)], ACCELERATE_CONFIG)
    flags = [word for word in flags if word not in _MODULE]
    return flags, parsed.accelerate_config, parsed.module, own


def _raise(message: str) -> None:
    raise ValueError(message)


def run(words: Sequence[str], prog: str = "fastrl run") -> int:
    """Run `fastrl run WORDS` and return its exit status.

    What the script raises comes out, the frames of this module left out of its traceback.
    """
    parser = _parser(prog)
    if not words or words[0] in ("-h", "--help"):
        parser.parse_args(list(words))
    try:
        flags, named, is_module, own = _separate(words)
        launcher = _launcher(flags, named) if flags or named else None
    except ValueError as error:
        parser.error(str(error))
    if launcher is not None:
        from fastrl.cli.launch import launch

        marked = ["-m", *own] if is_module else own
        return launch([*launcher, "--module", "fastrl.cli.run", *marked])
    install_as_trl()
    patch_transformers(children=True)
    _as_python_does(own, is_module)
    return 0


def _launcher(flags: list[str], named: str | None) -> list[str] | None:
    """What to call `accelerate launch` with, or None if this process is enough.

    Raises:
        ValueError: several processes run already, or what `launcher_words` refuses.
    """
    from fastrl.cli.launch import ACCELERATE_CONFIG, LAUNCHED, launcher_words

    if any(variable in os.environ for variable in LAUNCHED):
        word = flags[0] if flags else ACCELERATE_CONFIG
        raise ValueError(f"{word} belongs to the launcher, which has started this process")
    return launcher_words(named, flags)


# --- as python does ------------------------------------------------------------------------------


def _as_python_does(words: Sequence[str], is_module: bool) -> None:
    """Run a script or module as `__main__` with these words."""
    main = ModuleType("__main__")
    vars(main)["__builtins__"] = __builtins__
    sys.argv = list(words)
    try:
        code = _module(words[0], main) if is_module else _script(words[0], main)
        sys.modules["__main__"] = main
        exec(code, vars(main))
    except BaseException:
        _show_without_our_frames(vars(main))
        raise


def _script(path: str, main: ModuleType) -> CodeType:
    """The code of a file, or of a folder's or archive's `__main__.py`; paths become absolute."""
    path = os.path.join(os.getcwd(), path)  # ".." stays: a link may stand before it
    if os.path.isdir(path) or is_zipfile(path):
        _search_first(path)
        spec = PathFinder.find_spec("__main__", [path])
        if spec is None:
            raise SystemExit(f"fastrl run: can't find '__main__' module in {path!r}")
        return _code(spec, main)
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        print(f"fastrl run: can't open file {path!r}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    _search_first(str(Path(path).resolve().parent))
    main.__file__ = path
    main.__loader__ = SourceFileLoader("__main__", path)
    vars(main)["__cached__"] = None
    return compile(source, path, "exec", dont_inherit=True)


def _module(name: str, main: ModuleType) -> CodeType:
    """The code of a module, or of a package's `__main__`, found from the working directory."""
    _search_first(os.getcwd())
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            name = f"{name}.__main__"
            spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        raise SystemExit(f"fastrl run: error while finding module {name!r}: {error}") from None
    if spec is None:
        raise SystemExit(f"fastrl run: no module named {name}")
    sys.argv[0] = spec.origin or name
    return _code(spec, main)


def _code(spec: ModuleSpec, main: ModuleType) -> CodeType:
    """The code of a specification, which `main` gets for its own."""
    loader: Any = spec.loader
    code = loader.get_code(spec.name) if hasattr(loader, "get_code") else None
    if code is None:
        raise SystemExit(f"fastrl run: {spec.name} has no code to run")
    main.__spec__ = spec
    main.__loader__ = loader
    main.__package__ = spec.parent
    main.__file__ = spec.origin
    return code


def _search_first(folder: str) -> None:
    """Make the folder the first to be searched, where python would have put it."""
    if not sys.flags.safe_path:
        sys.path[0] = folder


def _show_without_our_frames(scope: dict[str, Any]) -> None:
    """Have the traceback that is about to be printed begin in the script.

    Args:
        scope: the script's globals.
    """
    show = sys.excepthook

    def excepthook(kind: type, error: BaseException, trace: TracebackType | None) -> None:
        while trace is not None and trace.tb_frame.f_globals is not scope:
            trace = trace.tb_next
        show(kind, error.with_traceback(trace), trace)

    sys.excepthook = excepthook


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
