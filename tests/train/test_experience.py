"""Rows of answers: taken, cut, put together again and shared out by work."""

import numpy as np
import pytest
import torch

from fastrl.train.experience import Drawn, Experience, joined, padded, regrouped


def answers(prompts, lengths, numbers):
    """Ids that say where they come from: prompt i is 100 i + 1, …; answer j is 1000 j + 1, …."""
    pairs = zip(numbers, prompts, strict=True)
    ids = [[100 * (n + 1) + k for k in range(length)] for n, length in pairs]
    own = [[1000 * (j + 1) + k for k in range(length)] for j, length in enumerate(lengths)]
    tensors = {
        "prompt_ids": padded(ids, 0, torch.int64, left=True),
        "prompt_mask": padded([[1] * n for n in prompts], 0, torch.int64, left=True),
        "completion_ids": padded(own, 0, torch.int64),
        "advantages": torch.arange(len(lengths), dtype=torch.float32),
        "num_items_in_batch": torch.tensor(sum(lengths)),
    }
    return Experience(
        tensors, list(prompts), list(lengths), [np.arange(n) for n in lengths], list(numbers)
    )


def rows_of(experience):
    """(prompt, answer, advantage) of each row, without padding."""
    held = experience.tensors
    found = []
    for i, (p, c) in enumerate(
        zip(experience.prompt_lengths, experience.completion_lengths, strict=True)
    ):
        prompt = held["prompt_ids"][i].tolist()
        found.append(
            (
                tuple(prompt[len(prompt) - p :]),
                tuple(held["completion_ids"][i, :c].tolist()),
                float(held["advantages"][i]),
            )
        )
    return found


def test_padded_on_either_side_and_to_a_multiple():
    assert padded([[1, 2, 3], [4]], 9, torch.int64).tolist() == [[1, 2, 3], [4, 9, 9]]
    left = padded([[1, 2, 3], [4]], 9, torch.int64, left=True, multiple=4)
    assert left.tolist() == [[9, 1, 2, 3], [9, 9, 9, 4]]


def test_taken_rows_lose_the_padding_of_the_others():
    whole = answers([2, 5, 2], [4, 1, 2], [0, 1, 0])
    some = whole.take([2, 0])
    assert some.width == (2, 4)
    assert rows_of(some) == [rows_of(whole)[2], rows_of(whole)[0]]
    assert some.tensors["num_items_in_batch"] == 7
    assert some.prompts == [0, 0]


def test_spans_share_the_prompt_and_score_the_answer():
    spans = answers([2, 5, 2], [4, 1, 2], [7, 3, 7]).take([0, 1, 2]).spans()
    assert spans.shape == (3, 9)
    assert spans.starts == [3, 0, 3] and spans.lengths == [6, 6, 4]
    assert [list(which) for which in spans.scored] == [[2, 3, 4, 5], [5], [2, 3]]
    assert [(group.spans, group.length) for group in spans.shared] == [((0, 2), 2)]


def test_parts_joined_are_the_rows_one_after_the_other():
    whole = answers([2, 5, 2, 1], [4, 1, 2, 3], [0, 1, 0, 2])
    parts = whole.cut(2)
    assert [len(part) for part in parts] == [2, 2] and parts[1].width == (2, 3)
    again = joined(parts, pad_token_id=0)
    assert rows_of(again) == rows_of(whole)
    assert "num_items_in_batch" not in again.tensors
    assert torch.equal(again.tensors["prompt_mask"], whole.tensors["prompt_mask"])


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 8])
def test_every_row_is_in_one_pass_and_no_pass_is_empty(parts):
    random = np.random.default_rng(parts)
    numbers = random.integers(0, 3, 8)
    whole = answers([5 + n for n in numbers], random.integers(1, 40, 8), numbers)
    passes = regrouped(whole, parts)
    assert len(passes) == parts and all(passes)
    assert sorted(row for rows in passes for row in rows) == list(range(8))


def test_answers_to_a_prompt_stay_together_and_passes_are_even():
    # Four groups of four answers, shuffled; two passes.
    numbers = [0, 1, 2, 3] * 4
    whole = answers([10] * 16, [5] * 16, numbers)
    passes = regrouped(whole, 2)
    for rows in passes:
        assert len(rows) == 8
        assert len({numbers[row] for row in rows}) == 2  # two whole groups


def test_a_group_that_outweighs_the_others_is_halved():
    # One group of 8 long answers, one of 2 short ones: halved, each half costs its prompt again.
    whole = answers([4] * 10, [30] * 8 + [2] * 2, [0] * 8 + [1] * 2)
    passes = regrouped(whole, 2)
    long = [sum(row < 8 for row in rows) for rows in passes]
    assert sorted(long) == [4, 4]


def test_a_single_group_fills_every_pass():
    whole = answers([4] * 6, [3] * 6, [0] * 6)
    assert sorted(map(len, regrouped(whole, 3))) == [1, 2, 3] or sorted(
        map(len, regrouped(whole, 3))
    ) == [2, 2, 2]
    assert sorted(map(len, regrouped(whole, 6))) == [1] * 6


def test_rows_that_belong_together_are_never_parted():
    # Five pairs that answer one prompt, a heavy and a light one; halves are of whole pairs.
    numbers = [0] * 10 + [1] * 2 + [2] * 2
    whole = answers([4] * 10 + [90] * 2 + [1] * 2, [9] * 14, numbers)
    for parts in (2, 3, 5, 7):
        passes = regrouped(whole, parts, together=2)
        assert len(passes) == parts and all(passes)
        for rows in passes:
            assert rows[1::2] == [row + 1 for row in rows[0::2]]
            assert all(row % 2 == 0 for row in rows[0::2])


def test_prompts_lose_their_beginning_for_the_longest_answer_beside_them():
    ids = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [7], [7]]
    own = [[9] * 2, [9] * 4, [9] * 8, [9]]
    drawn = Drawn(["a", "a", "b", "b"], ["w"] * 4, ids, own)
    cut = drawn.within(7, together=2)
    assert cut.prompt_ids == [[3, 4, 5], [3, 4, 5], [7], [7]] and cut.completion_ids == own
    assert drawn.within(7, together=1).prompt_ids == [[1, 2, 3, 4, 5], [3, 4, 5], [7], [7]]
    assert drawn.prompt_ids == ids


def test_replaced_answers_take_the_places_of_the_old():
    def drawn(first):
        return Drawn(
            prompts=[f"p{first + i}" for i in range(3)],
            completions=[f"c{first + i}" for i in range(3)],
            prompt_ids=[[first + i] for i in range(3)],
            completion_ids=[[first + i, 1] for i in range(3)],
            sampled_logp=[[-1.0 * (first + i)] * 2 for i in range(3)],
            extra={"label": [first + i for i in range(3)], "run": "a"},
            tool_calls=first,
        )

    both = drawn(0).replaced(drawn(10), [2, 0])
    assert both.prompts == ["p11", "p1", "p10"]
    assert both.completion_ids == [[11, 1], [1, 1], [10, 1]]
    assert both.extra == {"label": [11, 1, 10], "run": "a"}
    assert both.sampled_logp == [[-11.0] * 2, [-1.0] * 2, [-10.0] * 2]
    assert both.written is None and both.tool_calls == 10
