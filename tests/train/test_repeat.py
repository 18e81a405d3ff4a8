"""The order in which online trainers take their prompts."""

import torch
from datasets import Dataset

from fastrl.train.repeat import RepeatSampler, repeat_iterable_dataset


def test_each_index_and_each_batch_is_repeated():
    sampler = RepeatSampler(range(5), 2, batch_size=2, repeat_count=3, shuffle=False)
    batches = [[0, 0, 1, 1]] * 3 + [[2, 2, 3, 3]] * 3  # 4 alone is no batch
    assert list(sampler) == [index for batch in batches for index in batch]
    assert len(sampler) == 24


def test_epochs_take_one_order_after_the_other_from_a_generator():
    generator = torch.Generator()
    generator.manual_seed(7)
    first, second = (torch.randperm(6, generator=generator).tolist() for _ in range(2))
    sampler = RepeatSampler(range(6), 1, seed=7)
    assert list(sampler) == first
    assert list(sampler) == first  # an epoch taken again is the same
    sampler.set_epoch(1)
    assert list(sampler) == second
    resumed = RepeatSampler(range(6), 1, seed=7)
    resumed.set_epoch(1)
    assert list(resumed) == second


def test_a_stream_comes_in_the_same_order():
    rows = Dataset.from_dict({"prompt": list("abcde")})
    stream = repeat_iterable_dataset(rows.to_iterable_dataset(), 2, 2, 3)
    sampler = RepeatSampler(rows, 2, 2, 3, shuffle=False)
    assert [row["prompt"] for row in stream] == [rows[i]["prompt"] for i in sampler]
