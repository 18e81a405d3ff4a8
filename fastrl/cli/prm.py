"""`fastrl prm`: a model that judges the steps of solutions (PRM)."""

from __future__ import annotations

import sys
from typing import Any

import fastrl

HELP = "a model that judges each step of a solution (PRM)"


def make_parser(subparsers: Any = None, prog: str | None = None) -> Any:
    """The command's parser: options of script, training, model and dataset mixture."""
    from fastrl.cli.training import parser_for

    return parser_for(fastrl.PRMConfig, "prm", HELP, subparsers, prog)


def main(script_args: Any, training_args: Any, model_args: Any, dataset_args: Any) -> None:
    """Train as the options say."""
    from fastrl.cli.training import fit, trainer_arguments

    arguments = trainer_arguments(script_args, training_args, model_args, dataset_args)
    fit(fastrl.PRMTrainer(**arguments), script_args)


if __name__ == "__main__":
    from fastrl.cli.launch import run

    sys.exit(run("prm", sys.argv[1:]))
