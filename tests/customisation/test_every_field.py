"""Every field of every config does something when it is changed, or is refused."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
from transformers import TrainingArguments

from tests.customisation import runs
from tests.customisation.fields import FIELDS

INHERITED = {f.name for f in dataclasses.fields(TrainingArguments)}


def declared(cls: type) -> set[str]:
    """Fields that a class states itself, whether or not one below it does too."""
    stated = inspect.get_annotations(cls)
    return {f.name for f in dataclasses.fields(cls) if f.name in stated and f.init}


def families(cls: type) -> list[type]:
    """The class and those of ours it is made of."""
    return [c for c in cls.__mro__ if c.__module__.startswith("fastrl") and declared(c)]


OURS = {c.__name__: c for _, config, _ in runs.KINDS.values() for c in families(config)}
PROBES = [(owner, name) for owner, probes in FIELDS.items() for name in probes]


@pytest.mark.parametrize("owner", OURS)
def test_every_field_of_ours_has_its_evidence(owner):
    assert set(FIELDS.get(owner, ())) == declared(OURS[owner])


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "name"), PROBES, ids=[f"{o}.{n}" for o, n in PROBES])
def test_a_changed_value_is_seen(owner, name):
    FIELDS[owner][name].check(name)
