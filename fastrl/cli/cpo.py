"""`fastrl cpo`: preference optimization without a reference (CPO, SimPO, AlphaPO)."""

from __future__ import annotations

import sys
from typing import Any

import fastrl

HELP = "preference optimization without a reference (CPO, SimPO, AlphaPO)"


def make_parser(subparsers: Any = None, prog: str | None = None) -> Any:
    """The command's parser: options of script, training, model and dataset mixture."""
    from fastrl.cli.training import parser_for

    return parser_for(fastrl.CPOConfig, "cpo", HELP, subparsers, prog)


def main(script_args: Any, training_args: Any, model_args: Any, dataset_args: Any) -> None:
    """Train as the options say."""
    from fastrl.cli.training import fit, trainer_arguments

    arguments = trainer_arguments(script_args, training_args, model_args, dataset_args)
    fit(fastrl.CPOTrainer(**arguments), script_args)


if __name__ == "__main__":
    from fastrl.cli.launch import run

    sys.exit(run("cpo", sys.argv[1:]))
