"""Spans whose common beginning is fed once, against each span alone and against whole spans."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from fastrl.models import attention, layout, policy
from fastrl.models.policy import logprobs, prepare_policy
from fastrl.types import Shared, Tokens

CLOSE = {torch.float64: {"rtol": 1e-6, "atol": 1e-9}, torch.float32: {"rtol": 2e-4, "atol": 2e-5}}
DTYPE = {"mixtral": torch.float32, "qwen2-moe": torch.float32}
FAMILIES = ["qwen2", "llama", "gpt2", "mistral", "gemma3", "neox", "opt", "mixtral", "qwen2-moe"]
LENGTHS = [12, 8, 6, 19, 9, 11, 14]


@pytest.fixture
def groups() -> Tokens:
    """A group of four, a pair of which one is unscored, and a span by itself, right-padded."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 97, (len(LENGTHS), max(LENGTHS)), generator=generator)
    together, pair = (0, 2, 3, 6), (1, 5)
    for members, length in ((together, 6), (pair, 7)):
        ids[list(members), :length] = ids[members[0], :length].clone()
    scored = [6, 8, np.array([], dtype=np.int64), np.array([6, 7, 18]), 3, 7, np.array([9, 13])]
    shared = (Shared(together, 6), Shared(pair, 7))
    return Tokens(ids, [0] * len(LENGTHS), list(LENGTHS), scored, shared=shared)


def fed_by(model: Any) -> list[int]:
    """How many tokens each later call feeds."""
    fed: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda m, i, o: fed.append(o.shape[1]))
    return fed


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_equals_whole_and_alone(
    family: str, tiny: Any, groups: Tokens, twin: Any, grads: Any
) -> None:
    dtype = DTYPE.get(family, torch.float64)
    model = tiny(family, dtype)
    plain = twin(model)
    plan = prepare_policy(model)
    assert plan.shares_prefix, plan.prefix_reason
    weights = torch.linspace(-1, 1, groups.ids[:, 1:].numel()).view(len(LENGTHS), -1).double()
    truth = torch.zeros_like(weights)
    for span, (length, scored) in enumerate(zip(LENGTHS, groups.scored, strict=True)):
        ids = groups.ids[span : span + 1, :length]
        table = plain(input_ids=ids).logits[0].log_softmax(-1)
        chosen = np.arange(scored, length) if isinstance(scored, int) else scored
        for token in chosen.tolist():
            truth[span, token - 1] = table[token - 1, ids[0, token]]
    (weights * truth).sum().backward()
    whole = logprobs(model, dataclasses.replace(groups, shared=()))
    got = logprobs(model, groups)
    (weights * got.logp).sum().backward()
    torch.testing.assert_close(got.logp.double(), truth, **CLOSE[dtype])
    for name in ("logp", "entropy"):
        torch.testing.assert_close(getattr(got, name), getattr(whole, name), **CLOSE[dtype])
    assert torch.equal(got.mask, whole.mask)
    mine, theirs = grads(model), grads(plain)
    assert mine.keys() == theirs.keys()
    for name, want in theirs.items():
        limit = CLOSE[dtype]["rtol"] * max(want.abs().max().item(), 1e-3)
        torch.testing.assert_close(mine[name], want, rtol=0, atol=limit)


def test_what_is_shared_is_fed_once(tiny: Any, groups: Tokens) -> None:
    model = tiny("llama")
    prepare_policy(model)
    fed = fed_by(model)
    logprobs(model, groups)
    # Five common tokens once, then from the last common one up to the last that predicts. Span 2
    # has no score; span 1, all of it shared, none either, so that span 5 is whole; 4 is alone.
    assert fed == [5 + (11 - 5) + (18 - 5) + (13 - 5) + 10 + 8]


def test_sharing_ends_before_the_first_score(tiny: Any, groups: Tokens) -> None:
    model = tiny("llama")
    early = [6, 8, 6, np.array([3, 7, 18]), 3, 7, np.array([9, 13])]
    tokens = dataclasses.replace(groups, scored=early)
    want = logprobs(model, dataclasses.replace(tokens, shared=()))
    fed = fed_by(model)
    got = logprobs(model, tokens)
    assert fed == [2 + (11 - 2) + (18 - 2) + (13 - 2) + 10 + 8]
    torch.testing.assert_close(got.logp, want.logp, **CLOSE[torch.float64])
    nothing = dataclasses.replace(tokens, scored=[1] * len(LENGTHS))
    logprobs(model, nothing)
    assert fed[-1] == sum(LENGTHS) - len(LENGTHS)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_the_first_span_may_score_what_is_shared(
    family: str, tiny: Any, groups: Tokens, twin: Any, grads: Any
) -> None:
    scored = [np.array([2, 4, 8]), 1, 6, np.array([6, 7, 18]), 3, 7, np.array([9, 13])]
    tokens = dataclasses.replace(groups, scored=scored)
    model = tiny(family)
    plain = twin(model)
    table = plain(input_ids=tokens.ids).logits[:, :-1].log_softmax(-1)
    chosen = tokens.ids[:, 1:, None]
    want = table.gather(-1, chosen)[..., 0]
    prepare_policy(model)
    fed = fed_by(model)
    got = logprobs(model, tokens)
    # Five and six common tokens once; what predicts the last of each span ends it.
    assert fed == [5 + (8 - 5) + (18 - 5) + (13 - 5) + 6 + (7 - 6) + (10 - 6) + 8]
    assert got.mask.sum() == 3 + 7 + 3 + 6 + 4 + 2
    torch.testing.assert_close(got.logp, want * got.mask, **CLOSE[torch.float64])
    weights = torch.linspace(-1, 1, want.numel()).view_as(want).double()
    (weights * want * got.mask).sum().backward()
    (weights * got.logp).sum().backward()
    mine, theirs = grads(model), grads(plain)
    for name, expected in theirs.items():
        limit = 1e-6 * max(expected.abs().max().item(), 1e-3)
        torch.testing.assert_close(mine[name], expected, rtol=0, atol=limit)
    with torch.no_grad():
        torch.testing.assert_close(logprobs(model, tokens).logp, got.logp.detach())


def test_no_gradient_crosses_answers(tiny: Any, groups: Tokens, embedded: Any) -> None:
    model = tiny("mistral")
    prepare_policy(model)
    leaves = embedded(model)
    logprobs(model, groups).logp[3].sum().backward()
    (leaf,) = leaves
    (batch,) = layout.packed(groups, share=True).batches
    assert leaf.grad.shape[1] == batch.inputs["input_ids"].shape[1]
    positions = batch.inputs["position_ids"][0, :18].tolist()
    assert positions == [*range(5), *range(5, 11), *range(5, 12)]
    reached = leaf.grad[0].abs().sum(-1)
    own = range(5 + 6, 5 + 6 + 13)
    assert reached[own.stop - 5 : own.stop].min() > 0  # the window of 5
    assert reached[:5].max() > 0
    outside = torch.ones(len(reached), dtype=torch.bool)
    outside[:5] = False
    outside[own.start : own.stop] = False
    assert reached[outside].max() == 0


def test_groups_are_cut_between_spans(tiny: Any, groups: Tokens, monkeypatch: Any) -> None:
    model = tiny("qwen2")
    want = logprobs(model, groups)
    fed = fed_by(model)
    monkeypatch.setitem(policy.PACK_TOKENS, "cpu", 26)
    with torch.no_grad():
        got = logprobs(model, groups)
    # The group's last span begins a new piece, with all of its beginning.
    assert fed == [5 + 6 + 13, 13 + 8, 10]
    torch.testing.assert_close(got.logp, want.logp.detach(), **CLOSE[torch.float64])
    torch.testing.assert_close(got.entropy, want.entropy.detach(), **CLOSE[torch.float64])


def test_position_offsets_move_whole_groups(tiny: Any, groups: Tokens) -> None:
    model = tiny("gpt2")
    offsets = [4, 0, 4, 4, 7, 0, 4]
    tokens = dataclasses.replace(groups, position_offsets=offsets)
    want = logprobs(model, dataclasses.replace(tokens, shared=()))
    got = logprobs(model, tokens)
    torch.testing.assert_close(got.logp, want.logp, **CLOSE[torch.float64])
    assert (got.logp - logprobs(model, groups).logp).abs().max() > 1e-3


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_checkpointing_gives_the_same_gradients(
    family: str, lora: bool, tiny: Any, groups: Tokens, grads: Any
) -> None:
    model = tiny(family, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0)
    if lora:
        peft = pytest.importorskip("peft")
        targets = ["c_attn"] if family == "gpt2" else ["q_proj", "v_proj"]
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets)
        model = peft.get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        model = model.double()
    prepare_policy(model)
    model.train()
    logprobs(model, dataclasses.replace(groups, shared=())).logp.sum().backward()
    want = grads(model)
    assert len(want) > 3
    for mode in (None, False, True):
        if mode is not None:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": mode})
        logprobs(model, groups).logp.sum().backward()
        found = grads(model)
        if mode is not None:
            model.gradient_checkpointing_disable()
        assert found.keys() == want.keys()
        for name, expected in want.items():
            limit = 1e-6 * max(expected.abs().max().item(), 1e-3)
            torch.testing.assert_close(found[name], expected, rtol=0, atol=limit)


def test_router_loss_counts_every_copy(tiny: Any, groups: Tokens) -> None:
    model = tiny("mixtral", torch.float32)
    want = logprobs(model, dataclasses.replace(groups, shared=()), aux_loss=True)
    got = logprobs(model, groups, aux_loss=True)
    assert torch.equal(got.aux_loss, want.aux_loss)


def test_a_model_that_does_not_share_is_found_out(
    tiny: Any, groups: Tokens, monkeypatch: Any
) -> None:
    original = attention.attend_segments

    def alone(query: Any, key: Any, value: Any, segments: Any, *args: Any) -> torch.Tensor:
        plain = attention.Segments.of_lengths(list(segments.lengths))
        return original(query, key, value, plain, *args)

    with monkeypatch.context() as broken:
        broken.setattr(attention, "attend_segments", alone)
        model = tiny("llama")
        plan = prepare_policy(model)
    assert plan.packed
    assert not plan.shares_prefix
    assert "differ" in plan.prefix_reason
    want = logprobs(model, dataclasses.replace(groups, shared=()))
    assert torch.equal(logprobs(model, groups).logp, want.logp)


def test_padded_models_take_shared_spans_whole(tiny: Any, groups: Tokens, score: Any) -> None:
    model = tiny("bloom", torch.float32)
    want = score(model, dataclasses.replace(groups, shared=()))
    assert torch.equal(score(model, groups).logp, want.logp)
