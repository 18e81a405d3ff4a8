"""Formats against TRL's recorded answers, and what is beyond TRL: detection with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_cases import ANSWER, ASK
from datasets import Dataset, DatasetDict, IterableDataset
from format_cases import outputs
from record_formats import brief

import fastrl
from fastrl.data.formats import common_length, detect_format

RECORDED = json.loads((Path(__file__).parent / "fixtures" / "formats.json").read_text())


@pytest.fixture(scope="module")
def ours():
    return {name: brief(value) for name, value in outputs(fastrl).items()}


def test_every_function_answers_as_trl(ours):
    assert ours.keys() == RECORDED["outputs"].keys()
    differing = {
        name: (ours[name], theirs)
        for name, theirs in RECORDED["outputs"].items()
        if ours[name] != theirs
    }
    assert differing == {}


def test_a_chosen_side_that_ends_with_a_space_stays_whole():
    """TRL looks at the last character when the first differs, and tears the row apart."""
    row = {"chosen": "blue ", "rejected": "green"}
    assert fastrl.extract_prompt(row) == {"prompt": "", **row}


def test_an_empty_side_gives_an_empty_prompt():
    row = {"chosen": "", "rejected": "green"}
    assert fastrl.extract_prompt(row) == {"prompt": "", **row}


def test_an_empty_list_of_messages_is_not_conversational():
    assert not fastrl.is_conversational({"messages": []})
    assert not fastrl.is_conversational_from_value({"conversations": []})
    assert fastrl.is_conversational({"prompt": [], "completion": [ANSWER]})


def test_conversion_leaves_the_row_given_alone():
    row = {"conversations": [{"from": "user", "value": "hi"}]}
    converted = fastrl.maybe_convert_to_chatml(row)
    assert converted == {"messages": [{"role": "user", "content": "hi"}]}
    assert row == {"conversations": [{"from": "user", "value": "hi"}]}


def test_streams_and_dictionaries_are_unpaired():
    columns = {"chosen": ["a", "b"], "rejected": ["c", "d"]}
    stored = Dataset.from_dict(columns)
    expected = [("a", True), ("b", True), ("c", False), ("d", False)]
    stream = stored.to_iterable_dataset()
    for dataset in (
        fastrl.maybe_unpair_preference_dataset(stored, num_proc=1, desc="Unpairing"),
        fastrl.maybe_unpair_preference_dataset(stream, num_proc=2, desc="Unpairing"),
        fastrl.maybe_unpair_preference_dataset(DatasetDict(train=stored))["train"],
    ):
        assert [(row["completion"], row["label"]) for row in dataset] == expected

    def rows():
        yield {"chosen": "a", "rejected": "c"}

    nameless = IterableDataset.from_generator(rows)
    assert nameless.column_names is None
    unpaired = list(fastrl.unpair_preference_dataset(nameless))
    assert [row["completion"] for row in unpaired] == ["a", "c"]


@pytest.mark.parametrize(
    ("left", "right", "length"),
    [("", "a", 0), ("abc", "abd", 2), ("ab", "abc", 2), ([1, 2], [1, 2], 2), ([3], [4], 0)],
)
def test_common_length(left, right, length):
    assert common_length(left, right) == length
    assert common_length(left, right, left) == length


TALK = [ASK, ANSWER]
DETECTED = {
    "text": ({"text": "a"}, "language_modeling", False),
    "messages": ({"messages": TALK, "source": "x"}, "language_modeling", True),
    "share gpt": (
        {"conversations": [{"from": "user", "value": "x"}]},
        "language_modeling",
        True,
    ),
    "prompt": ({"prompt": [ASK]}, "prompt_only", True),
    "messages beside a prompt": ({"prompt": "a", "messages": TALK}, "language_modeling", True),
    "completion": ({"prompt": "a", "completion": "b"}, "prompt_completion", False),
    "preference": ({"prompt": [ASK], "chosen": [ANSWER], "rejected": [ANSWER]}, "preference", True),
    "implicit": ({"chosen": "a", "rejected": "b"}, "preference_implicit", False),
    "text prompt beside conversations": (
        {"prompt": "a", "chosen": TALK, "rejected": TALK},
        "preference_implicit",
        True,
    ),
    "unpaired": (
        {"prompt": "a", "completion": "b", "label": True},
        "unpaired_preference",
        False,
    ),
    "stepwise": (
        {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]},
        "stepwise_supervision",
        False,
    ),
    "ids": ({"input_ids": [1], "labels": [1], "text": "a"}, "tokenized", False),
    "pairs of ids": ({"chosen_ids": [1], "rejected_ids": [2]}, "tokenized", False),
}


@pytest.mark.parametrize("name", DETECTED)
def test_detection(name):
    row, kind, conversational = DETECTED[name]
    found = detect_format(list(row), row)
    assert (found.kind, found.conversational) == (kind, conversational)
    assert found.reason.startswith(kind)
    assert set(found.columns) <= set(row)


def test_detection_names_what_it_leaves_aside():
    found = detect_format(["messages", "source"], {"messages": TALK, "source": "x"})
    assert "beside source" in found.reason


def test_only_wanted_kinds_are_considered():
    row = {"prompt": [ASK], "messages": TALK}
    assert detect_format(list(row), row, wanted=("prompt_only",)).kind == "prompt_only"
    with pytest.raises(ValueError, match=r"make none of: preference\.\n"):
        detect_format(list(row), row, wanted=("preference",))


def test_another_text_column():
    row = {"story": "a"}
    assert detect_format(["story"], row, text_column="story").columns == ("story",)
    with pytest.raises(ValueError, match=r"\['story'\].*\n.*\n  SFTTrainer: messages"):
        detect_format(["story"], row)


@pytest.mark.parametrize(
    ("row", "seen"),
    [
        ({"prompt": [ASK], "completion": "b"}, "prompt: messages, completion: text"),
        ({"chosen": TALK, "rejected": "b"}, "chosen: messages, rejected: text"),
        ({"text": TALK}, "text: messages"),
        ({"text": None}, "text: NoneType"),
        ({"messages": ["a"]}, "messages: list of str"),
        ({"prompt": "a", "completion": 3}, "completion: int"),
    ],
)
def test_mixed_or_foreign_columns_are_refused(row, seen):
    with pytest.raises(ValueError, match=seen) as refused:
        detect_format(list(row), row)
    assert str(list(row)) in str(refused.value)
    assert "DPOTrainer, ORPOTrainer, CPOTrainer: prompt + chosen + rejected" in str(refused.value)
