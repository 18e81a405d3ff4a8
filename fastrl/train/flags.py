"""What a command line's flags say beyond filling one field of one dataclass each."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from fastrl.legacy.generation import pinned


def names_in(words: Iterable[str]) -> set[str]:
    """The flags among the words, without dashes."""
    flags = (word[2:].partition("=")[0] for word in words if word.startswith("--"))
    return {flag.replace("-", "_") for flag in flags}


def in_form(types: Iterable[type], names: Iterable[str]) -> list[type]:
    """The dataclasses, those of several forms in the one that these names of fields are of.

    Args:
        types: dataclasses; those of several forms have `form_of(names)`, a static method.
        names: the flags and keys that are given, without dashes; those that belong to a dataclass
            of one form decide nothing.

    Raises:
        ValueError: names of two forms.
    """
    types = list(types)
    single = [each for each in types if not hasattr(each, "form_of")]
    left = set(names) - _fields(single)
    return [each.form_of(left) if hasattr(each, "form_of") else each for each in types]


def shared_names(types: Iterable[type]) -> set[str]:
    """Flags that a dataclass takes without having a field for them, unless another one has it.

    Those are its `_shared_flags`, as of `ModelConfig`: switches that moved from one config into
    another, so that scripts of before read them in the one and scripts of today in the other.
    """
    types = list(types)
    shared = {name for each in types for name in getattr(each, "_shared_flags", ())}
    return shared - _fields(types)


def take_shared(types: Iterable[type], words: Sequence[str]) -> tuple[list[str], dict[str, bool]]:
    """(the words without those flags, what they say).

    Raises:
        ValueError: a flag's value means neither yes nor no.
    """
    wanted = shared_names(types)
    rest: list[str] = []
    values: dict[str, bool] = {}
    place = 0
    while place < len(words):
        flag, equals, value = words[place].partition("=")
        place += 1
        name = flag[2:].replace("-", "_") if flag.startswith("--") else ""
        if name not in wanted:
            rest.append(flag + equals + value)
            continue
        if not equals and place < len(words) and not words[place].startswith("-"):
            value = words[place]
            place += 1
        try:
            values[name] = string_to_bool(value) if value else True
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--{name}: {error}") from None
    return rest, values


def share(filled: Sequence[Any], values: dict[str, bool]) -> None:
    """Give each object what it reads of another's: `_shared_flags`, and how to checkpoint.

    Args:
        filled: the dataclasses' instances, in any order.
        values: what the command line says of flags that none of them has a field for.
    """
    for each in filled:
        for name in getattr(each, "_shared_flags", ()):
            owners = [o for o in filled if o is not each and hasattr(o, name)]
            if name in values or owners:
                setattr(each, name, values.get(name, getattr(owners[0], name) if owners else None))
        reentrant = vars(each).get("gradient_checkpointing_use_reentrant")
        for other in filled if reentrant is not None else ():
            if getattr(other, "gradient_checkpointing_kwargs", reentrant) is None:
                other.gradient_checkpointing_kwargs = {"use_reentrant": reentrant}


def pin_defaults(parser: Any) -> None:
    """Give the flags the defaults of the generation that is pinned, as the constructors would.

    Flags that have got another default since, of the program or of a file, keep it.

    Args:
        parser: a `transformers.HfArgumentParser`; what is pinned may change between two calls.
    """
    now, before = pinned() or "1", vars(parser).get("_generation", "1")
    if now == before:
        return
    parser._generation = now
    actions: dict[str, argparse.Action] = {}
    for action in parser._actions:
        actions.setdefault(action.dest, action)  # the second, --no_x, has a default that is unused
    for each in parser.dataclass_types:
        maker = next(c for c in each.__mro__ if "__init__" in vars(c))
        tables = vars(maker).get("_was_defaults", {})
        was, then = tables.get(before, {}), tables.get(now, {})
        for field in dataclasses.fields(each):
            name = field.name
            if name not in was.keys() | then.keys() or name in parser._defaults:
                continue
            if actions[name].default == was.get(name, field.default):
                actions[name].default = then.get(name, field.default)


def reformed(parser: Any, names: Iterable[str]) -> Any:
    """The parser, or one like it for the forms of its dataclasses that the names are of.

    That one is of the same class and has the defaults and the flags that the program has given
    this one, but for flags that its own dataclasses have.

    Args:
        parser: a `transformers.HfArgumentParser`.
        names: as of `in_form`; those with a default by `set_defaults` count too.
    """
    types = in_form(parser.dataclass_types, {*names, *parser._defaults})
    if types == list(parser.dataclass_types):
        return parser
    before, after = _anew(parser, parser.dataclass_types), _anew(parser, types)
    for each in (parser, before, after):
        pin_defaults(each)
    plain = {(*action.option_strings, action.dest): action for action in before._actions}
    targets = {action.dest: action for action in reversed(after._actions)}
    for action in parser._actions:
        own = plain.get((*action.option_strings, action.dest))
        if own is None:
            if not after._option_string_actions.keys() & set(action.option_strings):
                after._add_action(action)
        elif action.default != own.default and action.dest in targets:
            targets[action.dest].default = action.default
            targets[action.dest].required = False
    after._mutually_exclusive_groups += parser._mutually_exclusive_groups
    after.set_defaults(**parser._defaults)
    vars(after).update({k: v for k, v in vars(parser).items() if k not in vars(after)})
    return after


def _anew(parser: Any, types: Sequence[type]) -> Any:
    """A parser of the same class for these dataclasses, as made, whatever its class asks for."""
    made = object.__new__(type(parser))
    if "_options" in vars(parser):
        parser._begin(made, types)
    else:
        alike = ("prog", "usage", "description", "epilog", "add_help", "allow_abbrev")
        options = {name: getattr(parser, name) for name in alike}
        HfArgumentParser.__init__(made, types, **options)
    return made


def fill(parser: Any, parse: Callable[[Any, list[str]], Any], words: Sequence[str]) -> Any:
    """Fill a parser's dataclasses, each in the form that the flags are of.

    Args:
        parser: a `transformers.HfArgumentParser`; one of its kind for the other form is made where
            the flags ask for it.
        parse: how this parser, or that one, fills from words.
        words: the command line.
    """
    parser = reformed(parser, names_in(words))
    pin_defaults(parser)
    types = parser.dataclass_types
    rest, values = take_shared(types, words)
    filled = parse(parser, rest)
    share(filled, values)
    return filled


def _fields(types: Iterable[type]) -> set[str]:
    return {field.name for each in types for field in dataclasses.fields(each)}
