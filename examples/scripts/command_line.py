"""The command lines of the example scripts, of every vintage of TRL.

Scripts of PPO's `step()` take `--mini_batch_size 1` and `--ppo_config.mini_batch_size 1` (`parse`).
The others take the flags of `fastrl sft` and its like, and those of old_flags.py (`Script`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import made_up
import old_flags
import yaml
from datasets.utils.logging import disable_progress_bar
from transformers.utils.logging import disable_progress_bar as disable_loading_bar

from fastrl import ModelConfig, PPOConfig, ScriptArguments, TrlParser
from fastrl.cli.training import fit, trainer_arguments
from fastrl.legacy import closest
from fastrl.legacy.changes import Table
from fastrl.train.parser import read_config
from fastrl.train.script_arguments import DatasetMixtureConfig

# What the offline runs of all scripts have in common.
OFFLINE = {
    "max_length": 384,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "logging_steps": 0.02,
    "eval_strategy": "steps",
    "eval_steps": 0.6,
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
}
SMOKE = {
    "max_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "num_generations": 2,
    "max_completion_length": 8,
}
# Flags of a script, or of its config, for what offline runs have of their own.
NOT_OFFLINE = ("sft_model_path", "reward_funcs", "reward_model_name_or_path", "reward_model_path")


def names_given(words: Sequence[str]) -> set[str]:
    """Names of the flags, and of the keys in the --config file.

    Raises:
        ValueError: there is no such file, or it is no mapping.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--config", type=Path)
    found, rest = peek.parse_known_args(list(words))
    names = {old_flags.name_of(word) for word in rest} - {""}
    return names | set(read_config(found.config)) if found.config else names


# ------------------------------------------------------------- scripts of trainers with `train()`
@dataclass
class Offline:
    """Options of the runs that download nothing."""

    dataset: str | None = field(
        default=None, metadata={"help": "Folder of GSM8K: train on it and download nothing."}
    )
    model: str | None = field(
        default=None,
        metadata={"help": "Offline: folder of a model by sft.py to start from; unset: a new one."},
    )
    smoke: bool = field(
        default=False,
        metadata={
            "help": "Two steps of a tiny model, to see that it runs; on made-up sums if "
            "--dataset is left out."
        },
    )
    _legacy_fields: ClassVar[Table] = old_flags.FLAGS


@dataclass(frozen=True)
class Script:
    """A script: with --dataset FOLDER or --smoke it learns offline, else from names on the hub."""

    trainer: type
    config: type
    learn: Callable[[Offline, Any, ModelConfig], dict[str, tuple[float, float]]]
    about: str  # the script's docstring
    offline: Mapping[str, Any]  # defaults of offline runs, where they differ from the dataclasses'
    first: Mapping[str, Any] = field(default_factory=dict)  # defaults of the script of TRL 0.7.4
    options: type = ScriptArguments
    keywords: Callable[..., dict[str, Any]] = trainer_arguments  # makes the trainer's of options
    smoke: Mapping[str, Any] = field(default_factory=dict)  # where a smoke run differs from SMOKE

    def parse(self, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
        """(Offline, self.options, self.config, ModelConfig, DatasetMixtureConfig) of the words.

        Exits with a message on words that cannot be honoured.
        """
        words = list(sys.argv[1:] if argv is None else argv)
        types = (Offline, self.options, self.config, ModelConfig, DatasetMixtureConfig)
        about = self.about.split("\n")[0]
        usage = "%(prog)s [options]"
        parser = TrlParser(types, description=about, usage=usage, allow_abbrev=False)
        try:
            parser.set_defaults_with_config(**self._defaults(words))
            words = old_flags.positive(old_flags.flat(words), parser.known_flags())
            options = parser.parse_args_and_config(words)
        except ValueError as error:
            parser.error(str(error))
        self._check(parser, options)
        return options

    def _defaults(self, words: Sequence[str]) -> Mapping[str, Any]:
        """What holds unless the words, or the file they name, say otherwise."""
        names = names_given(old_flags.flat(words))
        smoke = {**SMOKE, **self.smoke}
        if names & {"dataset", "smoke"}:
            return {**OFFLINE, **self.offline, **(smoke if "smoke" in names else {})}
        if not self.first or not old_flags.is_of_first_scripts(words):
            return {}
        shown = " ".join(f"--{name} {value}" for name, value in self.first.items())
        print(f"flags of TRL 0.7.0 to 0.7.10, so its defaults too: {shown}", file=sys.stderr)
        return self.first

    def _check(self, parser: TrlParser, options: tuple[Any, ...]) -> None:
        given, script, args, model, mixture = options
        if not (given.dataset or given.smoke):
            if given.model is not None:
                parser.error("--model is for --dataset FOLDER; with a hub: --model_name_or_path")
            return
        named = {
            "--model_name_or_path (use --model)": model.model_name_or_path,
            "--dataset_name": script.dataset_name,
            "datasets": mixture.datasets,
        }
        for name in NOT_OFFLINE:
            named[f"--{name}"] = getattr(script, name, None) or getattr(args, name, None)
        for name, value in named.items():
            if value:
                parser.error(f"--dataset FOLDER has all it needs: leave out {name}")

    def run(self, argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]] | None:
        """Do what the words say; offline return name -> (before, after) of held-out figures."""
        offline, script_args, args, model_args, mixture = self.parse(argv)
        if offline.dataset or offline.smoke:
            disable_progress_bar()
            disable_loading_bar()
            offline.dataset = offline.dataset or made_up.sums(Path(args.output_dir) / "rows")
            return self.learn(offline, args, model_args)
        fit(self.trainer(**self.keywords(script_args, args, model_args, mixture)), script_args)
        return None


# --------------------------------------------------------------------- scripts of PPO's `step()`
FILLED_WHILE_RUNNING = {
    "world_size",
    "is_encoder_decoder",
    "is_peft_model",
    "backward_batch_size",
    "global_backward_batch_size",
    "global_batch_size",
}


def _flag(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return known[text.lower()]


def _dictionary(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is JSON but no object")
    return value


def _optional(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        return None if text == "None" else convert(text)

    parse.__name__ = getattr(convert, "__name__", "value")  # argparse names it in its errors
    return parse


def _converter(hint: Any) -> tuple[Callable[[str], Any], tuple[Any, ...] | None]:
    """How one word becomes a value of the field's type, and the values it may have."""
    if typing.get_origin(hint) is typing.Literal:
        return str, typing.get_args(hint)
    if typing.get_origin(hint) is types.UnionType:
        (inner,) = (a for a in typing.get_args(hint) if a is not type(None))
        return _optional(_converter(inner)[0]), None
    if hint is bool:
        return _flag, None
    if typing.get_origin(hint) is dict:
        return _dictionary, None
    return (hint if hint in (int, float) else _optional(str)), None


def add_fields(
    parser: argparse.ArgumentParser, cls: type, prefix: str, defaults: dict[str, Any]
) -> None:
    """A flag per dataclass field, plain and as `--prefix.field`; underscores may be dashes.

    Fields the caller leaves out are absent from the result, so that the class's defaults hold
    unless `defaults` names another.
    """
    hints = typing.get_type_hints(cls)
    group = parser.add_argument_group(cls.__name__)
    for each in dataclasses.fields(cls):
        if each.name in FILLED_WHILE_RUNNING:
            continue
        spellings = {each.name, each.name.replace("_", "-")}
        names = [f"--{s}" for s in sorted(spellings, reverse=True)]
        names += [f"--{prefix}.{s}" for s in sorted(spellings, reverse=True)]
        names += [f"--{prefix.replace('_', '-')}.{s}" for s in sorted(spellings, reverse=True)]
        convert, choices = _converter(hints[each.name])
        plain = None if each.default is dataclasses.MISSING else each.default
        shown = defaults.get(each.name, plain)
        options: dict[str, Any] = {"dest": each.name, "default": argparse.SUPPRESS}
        if hints[each.name] is bool:
            options |= {"nargs": "?", "const": True}
        group.add_argument(
            *dict.fromkeys(names),
            type=convert,
            choices=choices,
            metavar=None if choices else each.name.upper(),
            help=f"default: {shown}",
            **options,
        )


def _from_file(path: Path, actions: Mapping[str, argparse.Action]) -> dict[str, Any]:
    """Values of a --config file by field; its sections (`ppo_config:`) are taken apart."""
    values: dict[str, Any] = {}
    for key, value in read_config(path).items():
        if isinstance(value, dict) and key not in actions:
            values |= value
        else:
            values[key] = value
    for key in values:
        if key not in actions:
            raise ValueError(f"{path}: unknown {key}{closest(key, actions)}")
    return values


def parse(
    options_class: type, config_defaults: dict[str, Any], argv: Sequence[str] | None, about: str
) -> tuple[Any, PPOConfig]:
    """The script's own options and the PPOConfig; exits with a message on an unknown flag."""
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    parser.add_argument("--config", type=Path, help="YAML file of options", metavar="FILE")
    # Launchers say it this way too; what counts is the variable LOCAL_RANK.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    add_fields(parser, options_class, "args", {})
    add_fields(parser, PPOConfig, "ppo_config", config_defaults)
    for name in PPOConfig._legacy_fields:  # PPOConfig says what became of them
        parser.add_argument(
            f"--{name}",
            f"--ppo_config.{name}",
            nargs="?",
            const=True,
            type=yaml.safe_load,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
    actions = {action.dest: action for action in parser._actions}
    known = [flag for action in parser._actions for flag in action.option_strings]
    try:
        words = old_flags.flat(sys.argv[1:] if argv is None else argv)
        found, unknown = parser.parse_known_args(old_flags.positive(words, known))
        given = _from_file(found.config, actions) if found.config else {}
    except ValueError as error:
        parser.error(str(error))
    for word in unknown:
        parser.error(f"unknown argument {word}{closest(word, known)}")
    given |= {k: v for k, v in vars(found).items() if k not in ("config", "local_rank")}
    own = {each.name for each in dataclasses.fields(options_class)}
    options = options_class(**{k: v for k, v in given.items() if k in own})
    config = PPOConfig(**config_defaults | {k: v for k, v in given.items() if k not in own})
    return options, config
