"""Rows of tensors padded, shifted and cut: each laid out by hand."""

from __future__ import annotations

import legacy_cases as cases
import pytest
import torch

from fastrl.data import padding
from fastrl.ops.classic import first_true_indices


def test_pad_by_the_largest_of_every_dimension():
    rows = [torch.tensor([[1, 2], [3, 4]]), torch.tensor([[5, 6, 7]])]
    assert padding.pad(rows).tolist() == [
        [[1, 2, 0], [3, 4, 0]],
        [[5, 6, 7], [0, 0, 0]],
    ]
    rows = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    assert padding.pad(rows, -1, "left").tolist() == [[1, 2], [-1, 3]]
    assert padding.pad(rows, 9, pad_to_multiple_of=4).tolist() == [[1, 2, 9, 9], [3, 9, 9, 9]]
    assert padding.pad(rows, 9, "left", 3).tolist() == [[9, 1, 2], [9, 9, 3]]
    with pytest.raises(ValueError, match="padding_side must be 'left' or 'right'"):
        padding.pad(rows, padding_side="top")
    with pytest.raises(ValueError, match="tensors is empty"):
        padding.pad([])


def test_pad_to_length_never_cuts():
    rows = torch.tensor([[1, 2], [3, 4]])
    assert padding.pad_to_length(rows, 3, 7).tolist() == [[1, 2, 7], [3, 4, 7]]
    assert padding.pad_to_length(rows, 3, 7, dim=0).tolist() == [[1, 2], [3, 4], [7, 7]]
    assert torch.equal(padding.pad_to_length(rows, 1, 7), rows)


MASK = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 0]])
IDS = torch.arange(15).view(3, 5)


def kept(mask, ids):
    """The tokens that count, row by row."""
    return [row[m.bool()].tolist() for row, m in zip(ids, mask, strict=True)]


def test_flush_left_and_right():
    mask, ids = padding.flush_left(MASK, IDS)
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert kept(mask, ids) == kept(MASK, IDS) == [[2, 3], [6, 7, 8], [13]]
    mask, ids, again = padding.flush_right(MASK, IDS, IDS)
    assert mask.tolist() == [[0, 1, 1], [1, 1, 1], [0, 0, 1]]
    assert kept(mask, ids) == kept(MASK, IDS)
    assert torch.equal(ids, again)
    assert padding.flush_left(MASK).tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]


def test_flushing_rows_that_are_full_empty_or_have_holes():
    assert padding.flush_left(torch.ones(2, 3)).tolist() == [[1, 1, 1]] * 2
    assert padding.flush_left(torch.zeros(2, 3)).shape == (2, 0)
    assert padding.flush_left(torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0]])).tolist() == [
        [1, 0, 1],
        [0, 0, 0],
    ]


def test_first_true_indices():
    bools = torch.tensor([[False, True, True], [False, False, False], [True, False, True]])
    assert first_true_indices(bools).tolist() == [1, 3, 0]
    assert first_true_indices(bools[None], torch.int32).dtype == torch.int32
    assert first_true_indices(bools[None]).tolist() == [[1, 3, 0]]
    assert first_true_indices(torch.zeros(2, 0, dtype=torch.bool)).tolist() == [0, 0]


def test_responses_end_at_their_first_stop_token():
    responses = torch.tensor([[4, 2, 5, 2], [4, 5, 6, 7], [2, 2, 2, 2]])
    expected = [[4, 2, 0, 0], [4, 5, 6, 7], [2, 0, 0, 0]]
    assert padding.truncate_response(2, 0, responses).tolist() == expected
    ids, mask = padding.truncate_right(responses, 2, 0)
    assert ids.tolist() == expected
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    ids, _ = padding.truncate_right(responses, stop_token_ids=[2, 5], pad_token_id=0)
    assert ids.tolist() == [[4, 2, 0, 0], [4, 5, 0, 0], [2, 0, 0, 0]]


def test_decode_and_strip_padding():
    ids = torch.tensor([[2, 3, 1, 0], [0, 4, 5, 0]])
    texts = padding.decode_and_strip_padding(ids, cases.load_tokenizer())
    assert texts == ["rain on </s>", "the roof"]


def prompt(ids):
    return {"prompt_input_ids": ids, "prompt_attention_mask": [1] * len(ids)}


def test_beginnings_and_ends_are_added_where_they_lack():
    parts = [prompt([]), prompt([1, 5]), prompt([5])]
    found = padding.add_bos_token_if_needed(1, 0, parts[0], 2, parts[1], 1, parts[2])
    assert [part["prompt_input_ids"] for part in found] == [[1], [1, 5], [1, 5]]
    assert [part["prompt_attention_mask"] for part in found] == [[1], [1, 1], [1, 1]]
    assert found[2] is parts[2]
    unchanged = padding.add_bos_token_if_needed(None, 0, prompt([]), 0, prompt([]), 0, prompt([]))
    assert [part["prompt_input_ids"] for part in unchanged] == [[], [], []]
    answers = [{"input_ids": [5], "attention_mask": [1]}, {"input_ids": [2], "attention_mask": [1]}]
    chosen, rejected = padding.add_eos_token_if_needed(2, *answers)
    assert (chosen["input_ids"], chosen["attention_mask"]) == ([5, 2], [1, 1])
    assert (rejected["input_ids"], rejected["attention_mask"]) == ([2], [1])
