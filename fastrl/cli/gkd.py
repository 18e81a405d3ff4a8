"""`fastrl gkd`: a student learns a teacher's distributions on given answers and its own (GKD)."""

from __future__ import annotations

import sys
from typing import Any

import fastrl

HELP = "a student learns a teacher's distributions on given answers and its own (GKD)"


def make_parser(subparsers: Any = None, prog: str | None = None) -> Any:
    """The command's parser: options of script, training, model and dataset mixture."""
    from fastrl.cli.training import parser_for

    return parser_for(fastrl.GKDConfig, "gkd", HELP, subparsers, prog)


def gkd_arguments(
    script_args: Any, training_args: Any, model_args: Any, dataset_args: Any
) -> dict[str, Any]:
    """The keywords of GKDTrainer.

    Raises:
        ValueError: no model, no teacher or no dataset.
    """
    from fastrl.cli.distillation import distillation_arguments
    from fastrl.cli.training import load_quantised

    given = distillation_arguments(script_args, training_args, model_args, dataset_args)
    load_quantised(training_args, given.pop("quantization_config"))
    return given


def main(script_args: Any, training_args: Any, model_args: Any, dataset_args: Any) -> None:
    """Train as the options say."""
    from fastrl.cli.training import fit

    arguments = gkd_arguments(script_args, training_args, model_args, dataset_args)
    fit(fastrl.GKDTrainer(**arguments), script_args)


if __name__ == "__main__":
    from fastrl.cli.launch import run

    sys.exit(run("gkd", sys.argv[1:]))
