"""`fastrl alignprop`: Stable Diffusion follows the gradient of a reward (AlignProp)."""

from __future__ import annotations

import sys
from typing import Any

import fastrl

HELP = "Stable Diffusion follows the gradient of a reward (AlignProp)"


def make_parser(subparsers: Any = None, prog: str | None = None) -> Any:
    """The command's parser: options of pipeline, prompts, reward and training."""
    from fastrl.cli.pipelines import PipelineArguments
    from fastrl.cli.training import parser_for

    given = (fastrl.AlignPropConfig, "alignprop", HELP, subparsers, prog)
    return parser_for(*given, script=PipelineArguments, others=())


def main(options: Any, config: Any) -> None:
    """Train as the options say."""
    from fastrl.cli.pipelines import train

    train(fastrl.AlignPropTrainer, options, config)


if __name__ == "__main__":
    from fastrl.cli.launch import run

    sys.exit(run("alignprop", sys.argv[1:]))
