"""Command lines and YAML files into dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from fastrl.legacy import closest
from fastrl.legacy.changes import Change, Renamed, Settled, settle
from fastrl.train import flags


def init_zero_verbose() -> None:
    """Show only errors and warnings, each in one line."""
    from rich.logging import RichHandler

    logging.basicConfig(
        format="%(message)s", datefmt="[%X]", handlers=[RichHandler()], level=logging.ERROR
    )

    def show(message: Any, category: type, filename: str, lineno: int, *rest: Any) -> None:
        logging.warning(f"{filename}:{lineno}: {category.__name__}: {message}")

    warnings.showwarning = show


class TrlParser(HfArgumentParser):
    """`transformers.HfArgumentParser` that also reads `--config file.yaml`.

    The file maps field names to values, which the command line overrides; its block `env` sets
    environment variables. Flags and keys of older releases are translated with one FutureWarning.

    A dataclass that has several forms (`PPOConfig`) is filled in the form that the flags and the
    file's keys are of; its `form_of(names)` says which, and what none of them decides.

    Args:
        dataclass_types: the dataclasses to fill; none may have a field `config`, but that of TRL
            0.11's script arguments, which names the file.
        ignore_extra_args: whether unknown keys in the file are no error, as TRL 0.11 spelled it.
        parsers: `dataclass_types`, as TRL 0.11 called it.
        **kwargs: for argparse.ArgumentParser.

    Raises:
        TypeError: the dataclasses are given under both names.
    """

    def __init__(
        self,
        dataclass_types: Any = None,
        ignore_extra_args: bool = False,
        *,
        parsers: Any = None,
        **kwargs: Any,
    ) -> None:
        if parsers is not None and dataclass_types is not None:
            raise TypeError("parsers= is dataclass_types=; give one")
        types = parsers if dataclass_types is None else dataclass_types
        types = [] if types is None else types
        types = [types] if dataclasses.is_dataclass(types) else list(types)
        for each in types:
            own = any(f.name == "config" for f in dataclasses.fields(each))
            if own and not getattr(each, "_config_names_the_file", False):
                raise ValueError(
                    f"{each.__name__} has a field 'config', but --config names the YAML file"
                )
        super().__init__(dataclass_types=types, **kwargs)
        self._options = {"ignore_extra_args": ignore_extra_args, **kwargs}
        self._ignores_extra = ignore_extra_args
        self._loosen()

    def _loosen(self) -> None:
        """A flag alone is True for `bool | None` too; the word none is None for `int | None`."""
        hints = [get_type_hints(each) for each in self.dataclass_types]
        optional = {n for each in hints for n, hint in each.items() if NoneType in get_args(hint)}
        for action in self._actions:
            if action.dest not in optional or action.type not in (int, float, string_to_bool):
                continue
            if action.type is string_to_bool and action.nargs is None:
                action.nargs, action.const = "?", True
            action.type = _or_none(action.type)

    def parse_args_and_config(
        self,
        args: Iterable[str] | None = None,
        return_remaining_strings: bool = False,
        fail_with_unknown_args: bool = True,
        separate_remaining_strings: bool = False,
    ) -> tuple[Any, ...]:
        """Fill the dataclasses from the command line over the file over their defaults.

        Args:
            args: the words of the command line; None: the program's own.
            return_remaining_strings: return what is not known as a last item instead of failing:
                the file's, as `--key value`, then the command line's.
            fail_with_unknown_args: whether unknown keys in the file are an error.
            separate_remaining_strings: return those two as two last items.

        Raises:
            ValueError: an unknown flag or key (with the closest known one), a file that is no
                mapping, a switch of two dataclasses that is neither on nor off.
        """
        reader = self._in_form(args)
        if reader is not self:
            return reader.parse_args_and_config(
                args, return_remaining_strings, fail_with_unknown_args, separate_remaining_strings
            )
        words, unknown, path, told = self._read(args)
        if told:
            warnings.warn(f"old spellings: {'; '.join(told)}", FutureWarning, stacklevel=2)
        words, shared = flags.take_shared(self.dataclass_types, words)
        *filled, rest = super().parse_args_into_dataclasses(words, return_remaining_strings=True)
        flags.share(filled, shared)
        if return_remaining_strings:
            if separate_remaining_strings:
                return (*filled, unknown, rest)
            return (*filled, unknown + rest)
        self.refuse("command line", rest)
        if fail_with_unknown_args and not self._ignores_extra:
            self.refuse(str(path), unknown)
        return tuple(filled)

    def parse_args_into_dataclasses(
        self, args: Iterable[str] | None = None, *more: Any, **keywords: Any
    ) -> tuple[Any, ...]:
        """`transformers.HfArgumentParser`'s, in the form that the flags are of, old ones too."""

        def parse(parser: TrlParser, words: list[str]) -> tuple[Any, ...]:
            words, told = parser._modern_words(words)
            if told:
                warnings.warn(f"old spellings: {'; '.join(told)}", FutureWarning, stacklevel=4)
            return super().parse_args_into_dataclasses(words, *more, **keywords)

        return flags.fill(self, parse, list(sys.argv[1:] if args is None else args))

    def _in_form(self, args: Iterable[str] | None) -> TrlParser:
        """This parser, or one for the forms of its dataclasses that words and file ask for."""
        if not any(hasattr(each, "form_of") for each in self.dataclass_types):
            return self
        words, path = _take_config(list(sys.argv[1:] if args is None else args))
        keys = set() if path is None else read_config(path).keys()
        return flags.reformed(self, flags.names_in(words) | keys)

    def _begin(self, other: TrlParser, types: Any) -> None:
        """Make another one for these dataclasses with this one's options."""
        TrlParser.__init__(other, types, **self._options)

    def unknown_strings(self, args: Iterable[str]) -> tuple[list[str], list[str]]:
        """What neither dataclass takes: (the file's, as `--key value`; the command line's).

        Sets the file's environment variables and defaults, and fills nothing.

        Raises:
            ValueError: as `parse_args_and_config`, but for what is unknown.
        """
        words, unknown, _, _ = self._read(args)
        words, _ = flags.take_shared(self.dataclass_types, words)
        return unknown, self.parse_known_args(words)[1]

    def _read(
        self, args: Iterable[str] | None
    ) -> tuple[list[str], list[str], Path | None, list[str]]:
        """(words without --config, unknown ones of the file, the file, old spellings met)."""
        flags.pin_defaults(self)
        words, path = _take_config(list(sys.argv[1:] if args is None else args))
        if path is None:
            words, told = self._modern_words(words)
            return words, [], None, told
        values, more_told = self._modern_keys(read_config(path), path)
        words, told = self._modern_words(words, values)
        for name in flags.shared_names(self.dataclass_types) & values.keys():
            words = [f"--{name}={values.pop(name)}", *words]  # the words win, as they come last
        return words, self.set_defaults_with_config(**values), path, told + more_told

    def set_defaults_with_config(self, **kwargs: Any) -> list[str]:
        """Make the values the defaults, of sub-parsers too; what has one is no longer required.

        Returns:
            the values that no argument takes, as `--key value` strings.
        """
        flags.pin_defaults(self)  # before, as they would take a value like today's for unset
        used = _set_defaults(self, kwargs)
        rest = [(key, value) for key, value in kwargs.items() if key not in used]
        return [word for key, value in rest for word in (f"--{key}", str(value))]

    def known_flags(self) -> list[str]:
        """Every flag, as it is written."""
        return [flag for action in self._actions for flag in action.option_strings]

    def refuse(self, where: str, unknown: list[str], also: Iterable[str] = ()) -> None:
        """Raise ValueError for the first of the words, naming the closest flag (or of `also`)."""
        known = [*self.known_flags(), *also]
        for word in unknown:
            if word.startswith("--"):
                name = word.split("=")[0]
                raise ValueError(f"{where}: unknown {name}{closest(name, known)}")
        if unknown:
            raise ValueError(f"{where}: {unknown[0]!r} belongs to no argument")

    def _old_spellings(self) -> dict[str, Change]:
        """Those that the dataclasses state and that are no flag of any of them today."""
        table: dict[str, Change] = {}
        for each in self.dataclass_types:
            table |= getattr(each, "_legacy_fields", {})
        flags = set(self.known_flags())
        return {name: change for name, change in table.items() if f"--{name}" not in flags}

    def _given(self, words: list[str], old: Mapping[str, Any]) -> dict[str, str | None]:
        """Field -> the word that its flag of today is given; None for 0 and none."""
        given: dict[str, str | None] = {}
        for word, following in zip(words, [*words, "--"][1:], strict=True):
            flag, equals, value = word.partition("=")
            if flags.names_in([flag]) & old.keys():
                continue
            exact = self._option_string_actions.get(flag)
            short = self.allow_abbrev and flag.startswith("--") and len(flag) > 2
            meant = {exact.dest} if exact is not None else set()
            if exact is None and short:
                known = self._option_string_actions.items()
                meant = {action.dest for name, action in known if name.startswith(flag)}
            if len(meant) == 1:
                text = value if equals else following
                given[meant.pop()] = None if _is_nothing(text) else text
        return given

    def _modern_words(
        self, words: list[str], keys: Mapping[str, Any] | None = None
    ) -> tuple[list[str], list[str]]:
        """(the words in today's spelling, a phrase for each old flag among them).

        Args:
            keys: today's keys of the file, to which flags that yield do so too.
        """
        table = self._old_spellings()
        given = self._given(words, table)
        modern: list[str] = []
        last: list[str] = []  # what holds although its flag of today is given too, as 0
        told: list[str] = []
        place = 0
        while place < len(words):
            flag, equals, value = words[place].partition("=")
            place += 1
            name = flag[2:].replace("-", "_") if flag.startswith("--") else ""
            if name not in table:
                modern.append(flag + equals + value)
                continue
            values = [value] if equals else []
            while place < len(words) and not words[place].startswith("--"):
                values.append(words[place])
                place += 1
            change = table[name]
            if isinstance(change, Renamed):
                if change.new in given:
                    raise ValueError(f"--{change.new} is given both by that name and as --{name}")
                modern += [f"--{change.new}", *values]
                told.append(f"--{name} is --{change.new}")
                continue
            read = [yaml.safe_load(v) for v in values] or [True]
            settled = _settled({name: read[0] if len(read) == 1 else read}, table)
            told += settled.told
            above = {k: v for k, v in (keys or {}).items() if k in settled.yielding} | given
            for new, setting in _standing(settled, above, "command line").items():
                items = setting if isinstance(setting, list) else [setting]
                (last if new in given else modern).extend([f"--{new}", *map(str, items)])
        return modern + last, told

    def _modern_keys(self, values: dict[str, Any], path: Path) -> tuple[dict[str, Any], list[str]]:
        table = self._old_spellings()
        old = {key: value for key, value in values.items() if key in table}
        modern = {key: value for key, value in values.items() if key not in old}
        settled = _settled(old, table)
        return modern | _standing(settled, modern, str(path)), settled.told


def _settled(given: dict[str, Any], table: dict[str, Change]) -> Settled:
    try:
        return settle("the command line", "", table, given)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _standing(settled: Settled, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Today's values of old spellings, but those that yield to a given one.

    Raises:
        ValueError: one is given beside them to which they do not yield.
    """
    both = settled.arguments.keys() & given.keys() - settled.yielding
    if both:
        raise ValueError(f"{where}: {min(both)} is given both by that name and by an older one")
    return {name: value for name, value in settled.arguments.items() if not given.get(name)}


def _is_nothing(text: str) -> bool:
    try:
        return float(text) == 0
    except ValueError:
        return text.lower() in ("", "none", "null")


def _or_none(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        return None if text.lower() in ("none", "null") else convert(text)

    parse.__name__ = getattr(convert, "__name__", "value")  # argparse names it in its errors
    return parse


def _take_config(words: list[str]) -> tuple[list[str], Path | None]:
    """(the words without `--config FILE`, the file)."""
    rest: list[str] = []
    path = None
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        if word == "--config":
            if place == len(words):
                raise ValueError("--config needs the path of a YAML file")
            path = Path(words[place])
            place += 1
        elif word.startswith("--config="):
            path = Path(word.partition("=")[2])
        else:
            rest.append(word)
    return rest, path


def read_config(path: Path) -> dict[str, Any]:
    """The file's values; its block `env` is set in the environment and not among them.

    Raises:
        ValueError: there is no such file, or it (or `env`) is no mapping.
    """
    if not path.is_file():
        raise ValueError(f"--config {path}: there is no such file")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: the file must map names to values")
    variables = values.pop("env", {})
    if not isinstance(variables, dict):
        raise ValueError(f"--config {path}: `env` must map variables to values")
    os.environ.update({str(name): str(value) for name, value in variables.items()})
    return values


def _set_defaults(parser: argparse.ArgumentParser, values: dict[str, Any]) -> set[str]:
    used = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                used |= _set_defaults(inner, values)
        elif action.dest in values:
            action.default = values[action.dest]
            action.required = False
            used.add(action.dest)
    return used
