"""`fastrl online_dpo`: preference optimization on two answers of the policy (online DPO)."""

from __future__ import annotations

import sys
from typing import Any

import fastrl

HELP = "preference optimization on two answers of the policy, drawn as it learns (online DPO)"


def make_parser(subparsers: Any = None, prog: str | None = None) -> Any:
    """The command's parser: options of script and rewards, training, model and mixture."""
    from fastrl.cli.rewarded import RewardedArguments
    from fastrl.cli.training import parser_for

    return parser_for(
        fastrl.OnlineDPOConfig, "online_dpo", HELP, subparsers, prog, RewardedArguments
    )


def main(script_args: Any, training_args: Any, model_args: Any, dataset_args: Any) -> None:
    """Train as the options say."""
    from fastrl.cli.rewarded import judged_arguments
    from fastrl.cli.training import fit

    arguments = judged_arguments(script_args, training_args, model_args, dataset_args)
    fit(fastrl.OnlineDPOTrainer(**arguments), script_args)


if __name__ == "__main__":
    from fastrl.cli.launch import run

    sys.exit(run("online_dpo", sys.argv[1:]))
