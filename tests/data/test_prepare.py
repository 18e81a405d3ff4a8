"""Preparation gives the rows TRL 1.16 gives; record_preparation.py recorded those."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace

import datasets
import preparation_cases as cases
import pytest

from fastrl.data.prepare_preference import prepare_preference, prepare_reward
from fastrl.data.prepare_sft import prepare_sft
from fastrl.data.prepare_unpaired import prepare_unpaired

RECORDED = json.loads((cases.FIXTURES / "preparation.json").read_text())["cases"]
PREPARE = {
    "sft": prepare_sft,
    "dpo": prepare_preference,
    "reward": prepare_reward,
    "kto": prepare_unpaired,
}
# The defaults of TRL 1.16's configs, of what preparation reads.
DEFAULTS = {
    "dataset_text_field": "text",
    "completion_only_loss": None,
    "assistant_only_loss": False,
    "max_length": 1024,
    "truncation_mode": "keep_start",
    "packing": False,
    "eval_packing": None,
    "packing_strategy": "bfd",
    "shuffle_dataset": False,
    "seed": 42,
    "dataset_num_proc": None,
    "remove_unused_columns": True,
    "loss_type": "kto",
    "per_device_train_batch_size": 2,
    "desirable_weight": 1.0,
    "undesirable_weight": 1.0,
}


def arguments(**options):
    return SimpleNamespace(**{**DEFAULTS, **options})


def prepared(case, **options):
    dataset = datasets.Dataset.from_list(case.data())
    if case.streamed:
        dataset = dataset.to_iterable_dataset()
    tokenizer = cases.load_tokenizer(case.template, case.bos)
    more = {"formatting_func": cases.formatting_func} if case.formatted else {}
    args = arguments(**{**case.options, **options})
    return PREPARE[case.trainer](dataset, tokenizer, args, **more)


def digest(row):
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:8]


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.mark.parametrize("name", cases.CASES)
def test_rows_are_those_of_trl(name):
    case, peer = cases.CASES[name], RECORDED[name]
    rows = list(prepared(case))
    assert rows[0] == peer["first"]
    if len(rows) > 60:
        assert [len(rows), digest({"all": rows})] == peer["rows"]
    else:
        assert [digest(row) for row in rows] == peer["rows"]


def test_every_case_is_recorded():
    assert set(RECORDED) == set(cases.CASES)
