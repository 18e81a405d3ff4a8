"""Completions found in the tokens, and the packed stream, as TRL 0.7 made them."""

from __future__ import annotations

import json
import warnings

import legacy_cases as cases
import pytest
import torch
from preparation_cases import FIXTURES

from fastrl.data.collate_legacy import DataCollatorForCompletionOnlyLM
from fastrl.data.constant_length import ConstantLengthDataset

RECORDED = json.loads((FIXTURES / "legacy.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return cases.load_tokenizer()


def collator(tokenizer, *templates, **options):
    return DataCollatorForCompletionOnlyLM(*templates, tokenizer=tokenizer, **options)


@pytest.mark.filterwarnings("ignore:a row holds no")
def test_labels_are_those_of_trl(tokenizer):
    assert cases.masked(DataCollatorForCompletionOnlyLM, tokenizer) == RECORDED["labels"]


def test_streams_are_those_of_trl(tokenizer):
    assert cases.streamed(ConstantLengthDataset, tokenizer) == RECORDED["streams"]
    assert len(RECORDED["streams"]["plain"]) > 8, "several buffers"


def test_a_row_without_a_template_is_named(tokenizer):
    with pytest.warns(UserWarning, match=r"no response template \[5, 6\].*begins with 'rain on'"):
        batch = collator(tokenizer, [5, 6])([[2, 3]])
    assert batch["labels"].tolist() == [[-100, -100]]


def test_templates_are_encoded(tokenizer):
    found = collator(tokenizer, "the roof", "rain")
    assert (found.response_token_ids, found.instruction_token_ids) == ([4, 5], [2])


def test_the_end_token_is_learned_even_if_it_pads(tokenizer):
    tokenizer = cases.load_tokenizer()
    tokenizer.pad_token = "</s>"
    batch = collator(tokenizer, [4])([[2, 4, 5, 1], [4, 5]])
    assert batch["labels"].tolist() == [[-100, -100, 5, 1], [-100, 5, -100, -100]]


def test_padding_in_front(tokenizer):
    tokenizer = cases.load_tokenizer()
    tokenizer.padding_side = "left"
    batch = collator(tokenizer, [4])([[2, 4, 5, 1], [4, 5]])
    assert batch["input_ids"].tolist() == [[2, 4, 5, 1], [0, 0, 4, 5]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 5, 1], [-100, -100, -100, 5]]
    assert (batch["spans"].starts, batch["spans"].lengths) == ([0, 2], [4, 2])
    assert batch["spans"].scored == [2, 1]


def test_flattened_rows(tokenizer):
    batch = collator(tokenizer, [4], padding_free=True)([[2, 4, 5, 1], [4, 5]])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 5, 1, -100, 5]]


def test_another_ignore_index(tokenizer):
    batch = collator(tokenizer, [4], ignore_index=-1)([[2, 4, 5], [4, 5]])
    assert batch["labels"].tolist() == [[-1, -1, 5], [-1, 5, -1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mlm": True}, "mlm=True"),
        ({"tokenizer": None}, "tokenizer is missing"),
        ({"response_template": []}, "response_template is empty"),
    ],
)
def test_what_cannot_be_is_refused(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        DataCollatorForCompletionOnlyLM(
            **{"response_template": [1], "tokenizer": tokenizer, **options}
        )


def test_an_infinite_stream_begins_anew(tokenizer):
    rows = [{"text": "rain on the roof"}] * 3
    stream = ConstantLengthDataset(
        tokenizer, rows, "text", infinite=True, seq_length=5, num_of_sequences=1
    )
    assert len(stream) == 3
    taken = iter(stream)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert all(next(taken)["input_ids"].tolist() == [2, 3, 4, 5, 1] for _ in range(9))


def test_streams_that_cannot_be(tokenizer):
    with pytest.raises(ValueError, match="dataset_text_field"):
        ConstantLengthDataset(tokenizer, [])
    with pytest.raises(ValueError, match="empty"):
        list(ConstantLengthDataset(tokenizer, [], "text"))


def test_a_function_gives_the_text(tokenizer):
    rows = [{"a": "rain"}]
    stream = ConstantLengthDataset(
        tokenizer, rows, formatting_func=lambda row: row["a"] + " roof", seq_length=3
    )
    assert torch.equal(next(iter(stream))["labels"], torch.tensor([2, 5, 1]))
