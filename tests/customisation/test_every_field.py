"""Every field of every config does something when it is changed, or is refused."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
from transformers import TrainingArguments

import fastrl
from tests.customisation.fields import FIELDS

INHERITED = {f.name for f in dataclasses.fields(TrainingArguments)}


def declared(cls: type) -> set[str]:
    """Fields that a class states itself, whether or not one below it does too."""
    stated = inspect.get_annotations(cls)
    return {f.name for f in dataclasses.fields(cls) if f.name in stated and f.init}


def families(cls: type) -> list[type]:
    """The class and those of ours it is made of."""
    return [c for c in cls.__mro__ if c.__module__.startswith("fastrl") and declared(c)]


def public() -> list[type]:
    """Every config and every set of script options that `fastrl` exports."""
    named = [name for name in fastrl.__all__ if name.endswith(("Config", "Arguments"))]
    return [made for name in named if dataclasses.is_dataclass(made := getattr(fastrl, name))]


# Options that TRL's scripts of their day had; what they do is the user's script's own affair.
FOR_SCRIPTS = ("fastrl.train.script_arguments_classic",)
OURS = {c.__name__: c for cls in public() for c in families(cls) if c.__module__ not in FOR_SCRIPTS}
OPTIONS = {cls.__qualname__: cls for cls in public() if cls.__module__ in FOR_SCRIPTS}
PROBES = [(owner, name) for owner, probes in FIELDS.items() for name in probes]


@pytest.mark.parametrize("owner", OURS)
def test_every_field_of_ours_has_its_evidence(owner):
    assert set(FIELDS.get(owner, ())) == declared(OURS[owner])


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "name"), PROBES, ids=[f"{o}.{n}" for o, n in PROBES])
def test_a_changed_value_is_seen(owner, name):
    FIELDS[owner][name].check(name)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_old_scripts_reach_them(name):
    cls = OPTIONS[name]
    for stated in dataclasses.fields(cls):
        if stated.name == "config":
            continue  # a file that the parser reads
        words = {bool: "True", int: "7"}.get(type(stated.default), "given")
        parsed = fastrl.TrlParser((cls,)).parse_args_and_config(
            args=[f"--{stated.name}", words], return_remaining_strings=True
        )
        assert str(getattr(parsed[0], stated.name)) == words, stated.name
