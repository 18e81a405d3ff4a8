"""`fastrl COMMAND ...`: each command is a module with `HELP`, `add_arguments` and `run`."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

import fastrl

# Command -> its module, imported only when the command line is read.
COMMANDS = {"env": "fastrl.cli.env"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastrl", description=fastrl.__doc__)
    parser.add_argument("--version", action="version", version=f"fastrl {fastrl.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module_name in COMMANDS.items():
        module = importlib.import_module(module_name)
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: the program's own) and return its exit status."""
    options = _parser().parse_args(arguments)
    return options.run(options)
