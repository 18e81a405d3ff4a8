"""Packing gives TRL 1.16's rows; recorded by tests/data/record_packing.py."""

from __future__ import annotations

import hashlib
import json

import packing_cases as cases
import pytest
from datasets import Dataset, DatasetDict, IterableDataset, disable_progress_bars
from preparation_cases import FIXTURES

import fastrl
from fastrl.data.packing import STRATEGIES, pack_dataset

RECORDED = json.loads((FIXTURES / "packing.json").read_text())["cases"]


@pytest.fixture(autouse=True)
def quiet():
    disable_progress_bars()


@pytest.mark.parametrize("streamed", [False, True], ids=["stored", "streamed"])
@pytest.mark.parametrize("name", RECORDED)
def test_rows_are_those_of_trl(name, streamed):
    assert cases.packed(pack_dataset, name, streamed) == RECORDED[name]


def small():
    ids = [[1, 2, 3, 4, 5], [6, 7], [], [8, 9, 10], [11]]
    return Dataset.from_dict({"input_ids": ids, "labels": [[-t for t in row] for row in ids]})


def test_worked_by_hand():
    # Longest first: 12345 is cut to 1234 and fills a row; 8 9 10 leaves one place, which 11 takes.
    packed = pack_dataset(small(), 4)
    assert packed["input_ids"][:] == [[1, 2, 3, 4], [8, 9, 10, 11], [6, 7]]
    assert packed["seq_lengths"][:] == [[4], [3, 1], [2]]
    split = pack_dataset(small(), 4, "bfd_split")
    assert split["input_ids"][:] == [[1, 2, 3, 4], [8, 9, 10, 5], [6, 7, 11]]
    assert split["labels"][2] == [-6, -7, -11]
    wrapped = pack_dataset(small(), 4, "wrapped")
    assert wrapped["input_ids"][:] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11]]
    assert wrapped.column_names == ["input_ids", "labels"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_format_stays(strategy):
    packed = pack_dataset(small().with_format("numpy", columns=["labels"]), 4, strategy)
    assert packed.format["type"] == "numpy"
    assert packed.format["columns"] == ["labels"] + ["seq_lengths"] * (strategy != "wrapped")


def test_dictionaries_of_datasets():
    packed = pack_dataset(DatasetDict({"a": small(), "b": small().select([1])}), 4)
    assert packed["b"]["input_ids"][:] == [[6, 7]]


def test_streams_stay_streams():
    packed = pack_dataset(small().to_iterable_dataset(), 4)
    assert isinstance(packed, IterableDataset)
    assert next(iter(packed)) == {
        "input_ids": [1, 2, 3, 4],
        "labels": [-1, -2, -3, -4],
        "seq_lengths": [4],
    }


def test_map_arguments_are_used():
    packed = pack_dataset(small(), 4, map_kwargs={"batch_size": 2})
    assert packed["input_ids"][:] == [[1, 2, 3, 4], [6, 7], [8, 9, 10], [11]]


def test_what_cannot_be_packed():
    with pytest.raises(ValueError, match="strategy must be one of bfd, bfd_split, wrapped"):
        pack_dataset(small(), 4, "best")
    with pytest.raises(ValueError, match="seq_length must be at least 1, not 0"):
        pack_dataset(small(), 0)
    with pytest.raises(TypeError, match="'text' holds string"):
        pack_dataset(Dataset.from_dict({"input_ids": [[1]], "text": ["a"]}), 4)
    with pytest.raises(ValueError, match=r"'a' and 'b' differ in length in a row \(1 and 2"):
        pack_dataset(Dataset.from_dict({"a": [[1, 2], [1]], "b": [[1, 2], [1, 2]]}), 4)


def test_it_is_a_public_name():
    assert fastrl.pack_dataset is pack_dataset


def test_a_second_call_reads_the_cache(tmp_path):
    small().save_to_disk(str(tmp_path))
    first, second = (pack_dataset(Dataset.load_from_disk(str(tmp_path)), 4) for _ in range(2))
    assert first.cache_files == second.cache_files != []
    assert hashlib.sha256(str(first[:]).encode()).digest() == (
        hashlib.sha256(str(second[:]).encode()).digest()
    )
