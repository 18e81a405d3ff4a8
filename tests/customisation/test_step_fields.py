"""What IterativeSFTConfig has from TrainingArguments, and fields that decide nothing anywhere."""

from __future__ import annotations

import functools
import tempfile

import pytest
from datasets import Dataset

import fastrl
from tests.algos.offline_parity import making
from tests.customisation import runs
from tests.customisation.fields import FIELDS
from tests.customisation.probes import Same
from tests.customisation.test_inherited_fields import (
    ELSEWHERE,
    NAMES,
    WITH,
    _lost,
    acted_on,
    another,
    read_by,
    recorded,
)

CONFIG = fastrl.IterativeSFTConfig


def test_a_given_value_arrives_or_is_refused():
    with runs._heard():
        lost = [
            each
            for name, field in NAMES.items()
            if name not in ELSEWHERE and not set(WITH.get(name, ())) & set(CONFIG._NO_PART)
            for each in _lost(CONFIG, name, another(field, CONFIG))
        ]
    assert lost == []


@functools.cache
def read_by_steps():
    """What is read from construction over two steps, evaluation and saving."""
    rows = [making.tokenizer()(text, return_tensors="pt").input_ids[0] for text in ("ab", "cde")]
    held_out = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 4)
    with tempfile.TemporaryDirectory() as place, runs._heard(), recorded() as reads:
        args = CONFIG(place, **{**runs.BASE, "eval_strategy": "steps", "eval_steps": 1})
        trainer = fastrl.IterativeSFTTrainer(
            making.model(), args, eval_dataset=held_out, processing_class=making.tokenizer()
        )
        for _ in range(2):
            trainer.step(input_ids=rows)
        trainer.save_model()
    return reads


def test_what_transformers_reads_in_a_run_is_read_or_refused():
    unread = acted_on(read_by(None)) - acted_on(read_by_steps()) - set(CONFIG._NO_PART)
    assert unread == set()


def test_the_first_batch_is_logged_if_asked_for():
    rows = [making.tokenizer()(text, return_tensors="pt").input_ids[0] for text in ("ab", "cde")]
    for asked in (False, True):
        with tempfile.TemporaryDirectory() as place, runs._heard():
            args = CONFIG(place, **{**runs.BASE, "logging_steps": 3, "logging_first_step": asked})
            trainer = fastrl.IterativeSFTTrainer(
                making.model(), args, processing_class=making.tokenizer()
            )
            for _ in range(3):
                trainer.step(input_ids=rows)
        logged = [row["step"] for row in trainer.state.log_history]
        assert logged == ([1, 3] if asked else [3])


NO_EFFECT = [
    (config, name)
    for config in sorted({config for _, config, _ in runs.KINDS.values()}, key=lambda c: c.__name__)
    for name in config._NO_EFFECT
]


@pytest.mark.parametrize(
    ("config", "name"), NO_EFFECT, ids=[f"{c.__name__}.{n}" for c, n in NO_EFFECT]
)
def test_a_field_that_decides_nothing_says_so_once(config, name):
    field = config.__dataclass_fields__[name]
    with runs._heard() as heard:
        config("out", use_cpu=True)
        for _ in range(2):
            config("out", use_cpu=True, **{name: another(field, config)})
    assert heard.getvalue().count(f"{name}={another(field, config)!r} changes nothing") == 1


def test_every_field_that_is_the_same_either_way_says_so():
    same = {
        name for probes in FIELDS.values() for name, probe in probes.items() if type(probe) is Same
    }
    assert same == {name for _, name in NO_EFFECT}
