"""`fastrl ddpo`: Stable Diffusion learns to draw what scores high (DDPO)."""

from __future__ import annotations

import sys
from typing import Any

import fastrl

HELP = "Stable Diffusion learns to draw what scores high (DDPO)"


def make_parser(subparsers: Any = None, prog: str | None = None) -> Any:
    """The command's parser: options of pipeline, prompts, reward and training."""
    from fastrl.cli.pipelines import PipelineArguments
    from fastrl.cli.training import parser_for

    given = (fastrl.DDPOConfig, "ddpo", HELP, subparsers, prog)
    return parser_for(*given, script=PipelineArguments, others=())


def main(options: Any, config: Any) -> None:
    """Train as the options say."""
    from fastrl.cli.pipelines import train

    train(fastrl.DDPOTrainer, options, config)


if __name__ == "__main__":
    from fastrl.cli.launch import run

    sys.exit(run("ddpo", sys.argv[1:]))
