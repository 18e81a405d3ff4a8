"""`fastrl migrate script.py`: a script for TRL in fastrl's spelling of today."""

from __future__ import annotations

import argparse
import difflib
import io
import sys
import tokenize
from pathlib import Path

HELP = "show a script for TRL in today's spelling, as a diff; --write applies it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("scripts", metavar="SCRIPT", type=Path, nargs="+", help="Python files")
    parser.add_argument("--write", action="store_true", help="rewrite the files in place")


def run(options: argparse.Namespace) -> int:
    """Migrate each file; what cannot be rewritten goes to stderr, with its line in the old file.

    Returns:
        0, or 2 if a file cannot be read, rewritten or written (the others are done).
    """
    status = 0
    for path in options.scripts:
        try:
            _migrate_file(path, options.write)
        except Exception as error:  # whatever it is, the other files are to be done
            known = isinstance(error, OSError | SyntaxError | UnicodeDecodeError)
            said = error if known else f"not rewritten, {type(error).__name__}: {error}"
            print(f"fastrl migrate: {path}: {said}", file=sys.stderr)
            status = 2
    return status


def _migrate_file(path: Path, write: bool) -> None:
    from fastrl.compat.migration import migrate

    raw = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
    source = raw.decode(encoding)
    migrated = migrate(source)
    for line, text in migrated.notes:
        print(f"{path}:{line}: {text}", file=sys.stderr)
    if migrated.source == source:
        print(f"{path}: nothing to change", file=sys.stderr)
    elif write:
        path.write_bytes(migrated.source.encode(encoding))
        print(f"{path}: rewritten", file=sys.stderr)
    else:
        _show(path, source, migrated.source)


def _show(path: Path, before: str, after: str) -> None:
    """Print a unified diff that `patch -p0` and `git apply -p0` take."""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), str(path), str(path)
    )
    for line in lines:
        sys.stdout.write(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
