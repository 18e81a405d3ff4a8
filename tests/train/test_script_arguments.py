"""Datasets named on a command line."""

from __future__ import annotations

import dataclasses
import json

import pytest
from datasets import Dataset, DatasetDict

from fastrl.train.script_arguments import (
    DatasetConfig,
    DatasetMixtureConfig,
    ScriptArguments,
    get_dataset,
    load,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def files(tmp_path):
    """Two files of 6 and 4 rows."""
    for name, count in (("one", 6), ("two", 4)):
        rows = [json.dumps({"text": f"{name} {i}", "extra": i}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    return tmp_path


def of(files, *names, **options):
    return [DatasetConfig(str(files / f"{name}.jsonl"), **options) for name in names]


def test_fields_and_defaults_are_trls():
    def defaults(cls):
        missing = dataclasses.MISSING
        return {
            f.name: f.default if f.default_factory is missing else f.default_factory()
            for f in dataclasses.fields(cls)
        }

    assert defaults(ScriptArguments) == {
        "dataset_name": None,
        "dataset_config": None,
        "dataset_train_split": "train",
        "dataset_test_split": "test",
        "dataset_streaming": False,
        "ignore_bias_buffers": False,
    }
    assert defaults(DatasetMixtureConfig) == {
        "datasets": [],
        "streaming": False,
        "test_split_size": None,
    }
    assert defaults(DatasetConfig) == {
        "path": dataclasses.MISSING,
        "name": None,
        "data_dir": None,
        "data_files": None,
        "split": "train",
        "columns": None,
        "fraction": None,
    }


def test_local_files_of_each_kind(files):
    rows = Dataset.from_list([{"text": "a"}, {"text": "b"}])
    rows.to_parquet(files / "p.parquet")
    rows.to_json(files / "j.json")
    rows.to_csv(files / "c.csv")
    for name in ("p.parquet", "j.json", "c.csv"):
        assert load(str(files / name))["train"]["text"][:] == ["a", "b"], name
    assert load(str(files / "one.jsonl"), split="train").num_rows == 6
    (files / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"'.txt' files are not read, only .json, .jsonl"):
        load(str(files / "notes.txt"))


def test_folders_of_files_and_saved_ones(files):
    folder = files / "folder"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps({"text": split}))
    assert load(str(folder))["test"]["text"][:] == ["test"]
    saved = Dataset.from_list([{"text": "a"}])
    saved.save_to_disk(files / "saved")
    assert load(str(files / "saved"))["train"]["text"][:] == ["a"]
    DatasetDict({"left": saved}).save_to_disk(files / "dict")
    assert load(str(files / "dict"), split="left")["text"][:] == ["a"]
    with pytest.raises(ValueError, match=r"no split 'train', only \['left'\]"):
        load(str(files / "dict"), split="train")


def test_a_mixture_is_one_after_the_other(files):
    mixed = get_dataset(DatasetMixtureConfig(of(files, "one", "two", columns=["text"])))
    assert list(mixed) == ["train"] and mixed["train"].column_names == ["text"]
    assert mixed["train"]["text"][:] == [f"one {i}" for i in range(6)] + [
        f"two {i}" for i in range(4)
    ]


def test_fractions_scale_to_what_there_is(files):
    # Shares 1:3 of 6 and 4 rows: at most 4 / 0.75 = 5.33 rows, so 1 and 4.
    mixture = DatasetMixtureConfig(of(files, "one", fraction=0.1) + of(files, "two", fraction=0.3))
    assert get_dataset(mixture)["train"]["text"][:] == ["one 0"] + [f"two {i}" for i in range(4)]


def test_rows_held_out_are_the_same_in_every_process(files):
    first, second = (
        get_dataset(DatasetMixtureConfig(of(files, "one", "two"), test_split_size=0.3))
        for _ in range(2)
    )
    assert (first["train"].num_rows, first["test"].num_rows) == (7, 3)
    assert first["test"]["text"][:] == second["test"]["text"][:]
    whole = get_dataset(DatasetMixtureConfig(of(files, "one", "two"), test_split_size=2.0))
    assert whole["test"].num_rows == 2


def test_streaming(files):
    mixed = get_dataset(DatasetMixtureConfig(of(files, "one", "two"), streaming=True))
    assert [row["text"] for row in mixed["train"]][5:7] == ["one 5", "two 0"]


@pytest.mark.parametrize(
    ("shares", "streaming", "message"),
    [
        ((0.5, None), False, "for each dataset"),
        ((-1.0, 2.0), False, "negative"),
        ((0.0, 0.0), False, "positive"),
        ((0.5, 0.5), True, "streamed"),
    ],
)
def test_fractions_that_make_no_mixture(files, shares, streaming, message):
    datasets = of(files, "one", fraction=shares[0]) + of(files, "two", fraction=shares[1])
    with pytest.raises(ValueError, match=message):
        get_dataset(DatasetMixtureConfig(datasets, streaming=streaming))


def test_an_empty_mixture_is_refused():
    with pytest.raises(ValueError, match="empty"):
        get_dataset(DatasetMixtureConfig())
