"""truncate_dataset, pack_examples and messages with images, by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset, DatasetDict

import fastrl

ROWS = {"input_ids": [[1, 2, 3], [4, 5, 6, 7], []], "name": ["a", "bcd", "e"], "n": [1, 2, 3]}
CUT = [[1, 2], [4, 5], []]


def test_lists_are_cut_and_other_columns_kept():
    dataset = Dataset.from_dict(ROWS)
    cut = fastrl.truncate_dataset(dataset, 2)
    assert cut[:] == ROWS | {"input_ids": CUT}
    assert dataset[:] == ROWS
    stream = list(fastrl.truncate_dataset(dataset.to_iterable_dataset(), 2))
    assert [row["input_ids"] for row in stream] == CUT and stream[1]["name"] == "bcd"
    both = fastrl.truncate_dataset(DatasetDict(a=dataset, b=dataset.select([1])), max_length=3)
    assert both["b"]["input_ids"][:] == [[4, 5, 6]]


def test_the_format_stays_and_map_is_told_more():
    dataset = Dataset.from_dict(ROWS).with_format("torch", columns=["input_ids"])
    cut = fastrl.truncate_dataset(dataset, 2, {"batch_size": 1, "load_from_cache_file": False})
    assert torch.equal(cut[1]["input_ids"], torch.tensor([4, 5])) and set(cut[1]) == {"input_ids"}


def test_examples_are_one_stream_cut_at_equal_lengths():
    examples = {"a": [[1, 2, 3], [4], [], [5, 6]], "b": [[0, 0, 0], [1], [], [2, 2]]}
    assert fastrl.pack_examples(examples, 4) == {
        "a": [[1, 2, 3, 4], [5, 6]],
        "b": [[0, 0, 0, 1], [2, 2]],
    }


@pytest.mark.parametrize("length", [0, -1])
def test_lengths_are_positive(length):
    with pytest.raises(ValueError, match="max_length must be at least 1"):
        fastrl.truncate_dataset(Dataset.from_dict(ROWS), length)
    with pytest.raises(ValueError, match="seq_length must be at least 1"):
        fastrl.pack_examples({"a": [[1]]}, length)


def test_images_for_vllm():
    text = {"type": "text", "text": "what"}
    messages = [
        {"role": "user", "content": [{"type": "image", "image": "pixels"}, text]},
        {"role": "assistant", "content": "a cat"},
        {"role": "assistant", "tool_calls": []},
    ]
    before = copy.deepcopy(messages)
    made = fastrl.prepare_multimodal_messages_vllm(messages)
    assert made[0]["content"] == [{"type": "image_pil", "image_pil": "pixels"}, text]
    assert made[1:] == before[1:] and messages == before


@pytest.mark.parametrize("given", [(2,), ()])
def test_a_number_of_images_makes_places_in_the_messages_themselves(given):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "what"},
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": "why"},
    ]
    named = {} if given else {"num_images": 2}
    fastrl.prepare_multimodal_messages(messages, *given, **named)

    def text(words):
        return {"type": "text", "text": words}

    image = {"type": "image"}
    assert [m["content"] for m in messages] == [
        [text("be brief")],
        [image, image, text("what")],
        [text("a cat")],
        [text("why")],
    ]
