"""`fastrl COMMAND ...`: tools by argparse alone, training commands with parsers of their own."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import fastrl
from fastrl.cli import run

# Modules with `HELP`, `add_arguments` and `run`, imported when the command line is read.
TOOLS = {
    "env": "fastrl.cli.env",
    "migrate": "fastrl.cli.migrate",
    "plot": "fastrl.cli.plot",
}
# Modules with `HELP`, `make_parser` and `main`; they may start several processes.
TRAINING = (
    "sft", "dpo", "orpo", "cpo", "kto", "bco", "reward", "prm",
    "grpo", "rloo", "online_dpo", "nash_md", "xpo", "distillation", "gkd", "ppo",
    "ddpo", "alignprop",
)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastrl", description=fastrl.__doc__)
    parser.add_argument("--version", action="version", version=f"fastrl {fastrl.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in TRAINING:
        commands.add_parser(name, help=importlib.import_module(f"fastrl.cli.{name}").HELP)
    commands.add_parser("run", help=run.HELP)
    for name, module_name in TOOLS.items():
        module = importlib.import_module(module_name)
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(act=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: the program's own) and return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in TRAINING:
        from fastrl.cli import launch

        return launch.run(words[0], words[1:])
    if words and words[0] == "run":
        return run.run(words[1:])
    options = _parser().parse_args(words)
    return options.act(options)
