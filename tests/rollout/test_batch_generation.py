"""Padded prompts answered through generate, with the scores they were drawn from."""

from __future__ import annotations

import torch
from transformers import GenerationConfig

from fastrl.rollout.batch_generation import batch_generation, generate

QUERIES = torch.tensor([[0, 0, 5, 9], [4, 8, 30, 71], [0, 7, 7, 7]])


def settings(**more):
    return GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=0, **more)


def test_scores_are_those_the_tokens_were_drawn_from(tiny):
    model = tiny()
    model.generation_config.eos_token_id = None
    rows, scores = generate(model, QUERIES, 0, settings())
    assert torch.equal(rows[:, :4], QUERIES)
    assert torch.equal(scores.argmax(-1), rows[:, 4:])
    with torch.no_grad():
        for query, row, of_row in zip(QUERIES, rows, scores, strict=True):
            alone = torch.cat([query[query != 0], row[4:]])[None]
            expected = model(alone).logits[0, -6:-1]
            torch.testing.assert_close(of_row, expected, rtol=1e-4, atol=1e-4)


def test_some_at_a_time_give_the_same(tiny):
    model = tiny()
    model.generation_config.eos_token_id = None
    rows, scores = generate(model, QUERIES, 0, settings())
    ends = int(rows[0, 5])  # the first prompt's second token, so that parts differ in length
    for eos in (None, ends):
        whole = generate(model, QUERIES, 0, settings(eos_token_id=eos))[0]
        parts, part_scores = batch_generation(model, QUERIES, 1, 0, settings(eos_token_id=eos))
        assert torch.equal(parts, whole)
        width = part_scores.shape[1]
        assert part_scores.shape == (3, width, scores.shape[2])
    torch.testing.assert_close(part_scores[0, :2], scores[0, :2], rtol=1e-4, atol=1e-4)
    assert not part_scores[0, 2:].any()
