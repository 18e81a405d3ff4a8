"""Responses of one length to prompts of one length."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastrl.models import AutoModelForCausalLMWithValueHead
from fastrl.rollout import respond
from fastrl.rollout.respond import respond_to_batch


@torch.no_grad()
def greedy(model, ids, length):
    """The best token after each row, again and again, by whole forward passes."""
    for _ in range(length):
        ids = torch.cat([ids, model(ids)[0][:, -1].argmax(-1, keepdim=True)], 1)
    return ids[:, -length:]


QUERIES = torch.tensor([[5, 9, 11], [30, 4, 71]])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_respond_to_batch_takes_the_best_token_where_one_is_left(tiny, family):
    model = tiny(family)
    found = respond_to_batch(model, QUERIES, txt_len=12, top_k=1)
    assert torch.equal(found, greedy(model, QUERIES, 12))


def test_an_end_of_sequence_ends_nothing(tiny):
    model = tiny()
    first = greedy(model, QUERIES[:1], 1).item()
    model.config.eos_token_id = model.generation_config.eos_token_id = first
    found = respond_to_batch(model, QUERIES, txt_len=7, top_k=1)
    assert torch.equal(found, greedy(model, QUERIES, 7))
    assert found[0, 0] == first


def test_models_with_a_value_head_and_lists_of_prompts(tiny):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny("gpt2")).train()
    found = respond_to_batch(model, list(QUERIES), txt_len=5, top_p=1e-6)
    assert model.training
    assert torch.equal(found, greedy(model.eval(), QUERIES, 5))


class Ladder(nn.Module):
    """After token t come t + 1 and t + 2, with probabilities 0.8 and 0.2."""

    def forward(self, ids):
        logits = torch.full((*ids.shape, 40), -torch.inf)
        logits.scatter_(-1, (ids + 1)[..., None], torch.tensor(0.8).log().item())
        logits.scatter_(-1, (ids + 2)[..., None], torch.tensor(0.2).log().item())
        return (logits,)


def test_any_module_of_ids_answers_and_the_filters_hold():
    torch.manual_seed(0)
    ladder, modes = Ladder().train(), []
    ladder.register_forward_hook(lambda module, *_: modes.append(module.training))
    respond_to_batch(ladder, QUERIES % 9, txt_len=2)
    assert (modes, ladder.training) == ([False, False], True)
    start = torch.ones(400, 1, dtype=torch.int64)
    drawn = respond_to_batch(Ladder(), start, txt_len=3)
    jumps = torch.diff(torch.cat([start, drawn], 1))
    assert set(jumps.unique().tolist()) == {1, 2}
    assert abs((jumps == 2).float().mean().item() - 0.2) < 0.05
    for filters in ({"top_k": 1}, {"top_p": 0.8}):
        assert respond_to_batch(Ladder(), start[:9], 3, **filters).unique(dim=0).tolist() == [
            [2, 3, 4]
        ]


def test_a_model_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match=r"model must be an nn\.Module, got function"):
        respond_to_batch(lambda ids: Ladder()(ids), QUERIES)


def test_draws_follow_torchs_seed_on_both_ways(tiny, monkeypatch):
    model = tiny()
    torch.manual_seed(5)
    engine = respond_to_batch(model, QUERIES, 9)
    torch.manual_seed(5)
    monkeypatch.setattr(respond, "served", lambda model: "not today")
    assert torch.equal(respond_to_batch(model, QUERIES, 9), engine)
    assert not torch.equal(respond_to_batch(model, QUERIES, 9), engine)


@pytest.mark.parametrize(
    ("queries", "given", "told"),
    [
        ([torch.tensor([1, 2]), torch.tensor([1])], {}, "lengths .2, 1."),
        (torch.tensor([1, 2]), {}, r"must be \(B, L\)"),
        (torch.tensor([[97]]), {}, "vocabulary of 97"),
        (torch.tensor([[-1]]), {}, "vocabulary of 97"),
        (QUERIES, {"txt_len": 0}, "txt_len=0"),
        (QUERIES, {"txt_len": 126}, "128 positions"),
        (QUERIES, {"top_p": 1.5}, "top_p must be in"),
        (QUERIES, {"top_k": -1}, "top_k must be at least 0"),
    ],
)
def test_bad_input(tiny, queries, given, told):
    with pytest.raises(ValueError, match=told):
        respond_to_batch(tiny("gpt2"), queries, **given)
