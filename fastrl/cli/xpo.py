"""`fastrl xpo`: preference optimization on answers of the policy and of its reference (XPO)."""

from __future__ import annotations

import sys
from typing import Any

import fastrl

HELP = "preference optimization on answers of the policy and of its reference (XPO)"


def make_parser(subparsers: Any = None, prog: str | None = None) -> Any:
    """The command's parser: options of script and rewards, training, model and mixture."""
    from fastrl.cli.rewarded import RewardedArguments
    from fastrl.cli.training import parser_for

    return parser_for(fastrl.XPOConfig, "xpo", HELP, subparsers, prog, RewardedArguments)


def main(script_args: Any, training_args: Any, model_args: Any, dataset_args: Any) -> None:
    """Train as the options say."""
    from fastrl.cli.rewarded import judged_arguments
    from fastrl.cli.training import fit

    arguments = judged_arguments(script_args, training_args, model_args, dataset_args)
    fit(fastrl.XPOTrainer(**arguments), script_args)


if __name__ == "__main__":
    from fastrl.cli.launch import run

    sys.exit(run("xpo", sys.argv[1:]))
