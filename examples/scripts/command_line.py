"""Both command lines of the guides: `--mini_batch_size 1` and `--ppo_config.mini_batch_size 1`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from fastrl import PPOConfig
from fastrl.legacy import closest

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
    for field in dataclasses.fields(cls):
        if field.name in FILLED_WHILE_RUNNING:
            continue
        spellings = {field.name, field.name.replace("_", "-")}
        names = [f"--{s}" for s in sorted(spellings, reverse=True)]
        names += [f"--{prefix}.{s}" for s in sorted(spellings, reverse=True)]
        names += [f"--{prefix.replace('_', '-')}.{s}" for s in sorted(spellings, reverse=True)]
        convert, choices = _converter(hints[field.name])
        plain = None if field.default is dataclasses.MISSING else field.default
        shown = defaults.get(field.name, plain)
        options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
        if hints[field.name] is bool:
            options |= {"nargs": "?", "const": True}
        group.add_argument(
            *dict.fromkeys(names),
            type=convert,
            choices=choices,
            metavar=None if choices else field.name.upper(),
            help=f"default: {shown}",
            **options,
        )


def parse(
    options_class: type, config_defaults: dict[str, Any], argv: Sequence[str] | None, about: str
) -> tuple[Any, PPOConfig]:
    """The script's own options and the PPOConfig; exits with a message on an unknown flag."""
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    add_fields(parser, options_class, "args", {})
    add_fields(parser, PPOConfig, "ppo_config", config_defaults)
    found, unknown = parser.parse_known_args(argv)
    for word in unknown:
        known = [flag for action in parser._actions for flag in action.option_strings]
        parser.error(f"unknown argument {word}{closest(word, known)}")
    own = {field.name for field in dataclasses.fields(options_class)}
    given = vars(found)
    options = options_class(**{k: v for k, v in given.items() if k in own})
    config = PPOConfig(**config_defaults | {k: v for k, v in given.items() if k not in own})
    return options, config
