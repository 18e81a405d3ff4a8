"""A training command: in this process where one is enough, otherwise by `accelerate launch`."""

from __future__ import annotations

import importlib
import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastrl.legacy import closest

CONFIGS = Path(__file__).parent / "accelerate_configs"
# Set by torchrun, accelerate, DeepSpeed and MPI in each process they start.
LAUNCHED = ("LOCAL_RANK", "RANK", "OMPI_COMM_WORLD_RANK", "ACCELERATE_MIXED_PRECISION")
ACCELERATE_CONFIG = "--accelerate_config"


def named_configs() -> list[str]:
    """The configurations of accelerate that come with fastrl."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def config_file(name: str) -> Path:
    """The file of a configuration given by name or path. Raises ValueError if there is none."""
    if (CONFIGS / f"{name}.yaml").is_file():
        return CONFIGS / f"{name}.yaml"
    if Path(name).is_file():
        return Path(name)
    known = named_configs()
    raise ValueError(
        f"{ACCELERATE_CONFIG} {name}: neither a file nor one of {', '.join(known)}"
        f"{closest(name, known)}"
    )


def take(words: Sequence[str], flag: str) -> tuple[list[str], str | None]:
    """(the words without `flag VALUE`, the value). Raises ValueError if it has none."""
    rest: list[str] = []
    value = None
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        if word == flag:
            if place == len(words):
                raise ValueError(f"{flag} needs a value: {', '.join(named_configs())}, or a file")
            value = words[place]
            place += 1
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    return rest, value


def _without(words: Iterable[str], dropped: Sequence[str]) -> list[str]:
    """The words less those of `dropped`, which occur among them in this order."""
    waiting = list(dropped)
    kept = []
    for word in words:
        if waiting and word == waiting[0]:
            waiting.pop(0)
        else:
            kept.append(word)
    return kept


def _launcher_flags() -> set[str]:
    from accelerate.commands.launch import launch_command_parser

    return {flag for action in launch_command_parser()._actions for flag in action.option_strings}


def separate(parser: Any, words: Sequence[str]) -> tuple[list[str], list[str], str | None]:
    """(words for the script, words for accelerate, the configuration of accelerate).

    What the script's parser does not know must be a flag of `accelerate launch`; the --config file
    may hold such keys too, and `accelerate_config`.

    Raises:
        ValueError: a flag or key that neither knows, with the closest one.
    """
    words, named = take(words, ACCELERATE_CONFIG)
    from_file, rest = parser.unknown_strings(words)
    from_file, named_in_file = take(from_file, ACCELERATE_CONFIG)
    if from_file or rest:
        known = _launcher_flags()
        for where, strings in (("--config file", from_file), ("command line", rest)):
            flags = {word.split("=")[0] for word in strings if word.startswith("--")}
            strangers = [word for word in strings if word.split("=")[0] in flags - known]
            parser.refuse(where, strangers, also=[*known, ACCELERATE_CONFIG])
            if strings and not strings[0].startswith("--"):
                parser.refuse(where, strings)
    return _without(words, rest), [*from_file, *rest], named or named_in_file


def _default_config() -> bool:
    """Whether `accelerate config` has been answered on this machine."""
    from accelerate.commands.config.config_args import default_config_file

    return Path(default_config_file).is_file()


def _first_visible() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def launcher_words(named: str | None, given: Sequence[str]) -> list[str] | None:
    """What to call `accelerate launch` with, or None if this process is enough.

    Raises:
        ValueError: a configuration for several GPUs where there is none.
    """
    gpus = torch.accelerator.device_count()
    single = named == "single_gpu" or named is None
    if single and not given and gpus <= 1 and (named is not None or not _default_config()):
        return None
    flags = {word.split("=")[0] for word in given}
    words = [] if named is None else ["--config_file", str(config_file(named))]
    words += given
    if named == "single_gpu" and "--gpu_ids" not in flags:
        words += ["--gpu_ids", _first_visible()]
    counted = "--num_processes" in flags or named == "single_gpu"
    shipped = named in named_configs()
    if shipped and not counted:
        if gpus == 0:
            raise ValueError(f"{ACCELERATE_CONFIG} {named} needs GPUs, and none is visible here")
        words += ["--num_processes", str(gpus)]
    return words


def run(command: str, words: Sequence[str]) -> int:
    """Run `fastrl COMMAND WORDS` and return its exit status."""
    module = importlib.import_module(f"fastrl.cli.{command}")
    parser = module.make_parser(prog=f"fastrl {command}")
    try:
        own, given, named = separate(parser, words)
        if any(variable in os.environ for variable in LAUNCHED):
            _refuse_launcher_words(words, given)
            launcher = None
        else:
            launcher = launcher_words(named, given)
        if launcher is None:
            # Keys for accelerate in the file have been checked; they are not the script's.
            options = parser.parse_args_and_config(own, fail_with_unknown_args=False)
    except ValueError as error:
        parser.error(str(error))
    if launcher is None:
        module.main(*options)
        return 0
    return launch([*launcher, "--module", f"fastrl.cli.{command}", *own])


def _refuse_launcher_words(words: Sequence[str], given: Sequence[str]) -> None:
    """Several processes run already; only the file may still hold what started them."""
    known = {word for word in (*given, ACCELERATE_CONFIG) if word.startswith("--")}
    for word in words:
        if word.split("=")[0] in {flag.split("=")[0] for flag in known}:
            raise ValueError(f"{word} belongs to the launcher, which has started this process")


def launch(words: Sequence[str]) -> int:
    """Run `accelerate launch WORDS` and return its exit status."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    try:
        launch_command(launch_command_parser().parse_args(list(words)))
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0
