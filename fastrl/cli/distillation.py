"""`fastrl distillation`: a student learns a teacher's distributions on answers of its own."""

from __future__ import annotations

import sys
from typing import Any

import fastrl

HELP = "a student learns a teacher's distributions on answers of its own"


def make_parser(subparsers: Any = None, prog: str | None = None) -> Any:
    """The command's parser: options of script, training, model and dataset mixture."""
    from fastrl.cli.training import parser_for

    return parser_for(fastrl.DistillationConfig, "distillation", HELP, subparsers, prog)


def distillation_arguments(
    script_args: Any, training_args: Any, model_args: Any, dataset_args: Any
) -> dict[str, Any]:
    """The keywords of DistillationTrainer; a teacher is loaded as the student, but whole.

    Raises:
        ValueError: no model, no teacher or no dataset.
    """
    from fastrl.cli.training import trainer_arguments

    teacher = training_args.teacher_model_name_or_path
    if teacher is None:
        raise ValueError("teacher_model_name_or_path is needed: a folder, or a name on the hub")
    given = {
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    }
    own = training_args.teacher_model_init_kwargs or {}
    training_args.teacher_model_init_kwargs = {**given, **own}
    arguments = trainer_arguments(script_args, training_args, model_args, dataset_args)
    return {**arguments, "teacher_model": teacher}


def main(script_args: Any, training_args: Any, model_args: Any, dataset_args: Any) -> None:
    """Train as the options say."""
    from fastrl.cli.training import fit

    arguments = distillation_arguments(script_args, training_args, model_args, dataset_args)
    fit(fastrl.DistillationTrainer(**arguments), script_args)


if __name__ == "__main__":
    from fastrl.cli.launch import run

    sys.exit(run("distillation", sys.argv[1:]))
