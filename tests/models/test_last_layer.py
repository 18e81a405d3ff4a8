"""The last layer leaves out what no score depends on, and the scores and gradients are the same."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from fastrl.models import last_layer, layout
from fastrl.models.policy import logprobs, prepare_policy
from fastrl.models.pooled import prepare_rewards, rewards
from fastrl.types import Tokens

# GPT-2 in fp64 is fp64 throughout; the norms and rotary tables of the others are fp32 in any model.
CLOSE = {"gpt2": {"rtol": 1e-9, "atol": 1e-12}}
ROUNDED = {"rtol": 2e-5, "atol": 2e-6}
FAMILIES = ["gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma3", "cohere", "neox", "opt"]
PROMPTED = [5, 16, 8, 12]  # of 66 tokens fed, 19 + 1 + 1 + 8 have a score
KEPT = 29


def last(model: Any) -> nn.Module:
    """The model's last layer."""
    layer = last_layer._find(model)
    assert layer is not None
    return layer


def widths(layer: Any, monkeypatch: Any) -> list[int]:
    """How many tokens each later call of the layer's second norm is given."""
    seen: list[int] = []
    norm = layer.ln_2
    plain = type(norm).forward

    def counted(self: nn.Module, given: torch.Tensor) -> torch.Tensor:
        if self is norm:
            seen.append(given.shape[1])
        return plain(self, given)

    monkeypatch.setattr(type(norm), "forward", counted)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gradients_are_those_of_separate_rows(
    family: str, tiny: Any, rows: Tokens, separately: Any, twin: Any, grads: Any
) -> None:
    rows = dataclasses.replace(rows, scored=PROMPTED)
    model = tiny(family)
    plain = twin(model)
    truth = separately(plain, rows)
    weights = torch.linspace(-1, 1, truth.logp.numel()).view_as(truth.logp).double()
    (weights * truth.logp).sum().backward()
    want = grads(plain)
    plan = prepare_policy(model)
    assert plan.trims, plan.trim_reason
    got = logprobs(model, rows)
    (weights * got.logp).sum().backward()
    close = CLOSE.get(family, ROUNDED)
    torch.testing.assert_close(got.logp.double(), truth.logp, rtol=1e-6, atol=1e-6)
    mine = grads(model)
    assert mine.keys() == want.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(mine[name], gradient, **close, msg=lambda m, n=name: f"{n}: {m}")


def test_only_wanted_tokens_pass_the_last_layer(tiny: Any, rows: Tokens, monkeypatch: Any) -> None:
    model = tiny("gpt2")
    prepare_policy(model)
    seen = widths(last(model), monkeypatch)
    logprobs(model, dataclasses.replace(rows, scored=PROMPTED))
    assert seen == [KEPT]
    logprobs(model, dataclasses.replace(rows, scored=[1, 1, 1, 1]))  # all of them are wanted
    logprobs(model, dataclasses.replace(rows, scored=list(rows.lengths)))  # none is
    assert seen == [KEPT, 66, 1]


def test_a_watched_module_sees_whole_runs(tiny: Any, rows: Tokens) -> None:
    model = tiny("gpt2")
    rows = dataclasses.replace(rows, scored=PROMPTED)
    prepare_policy(model)
    alone = logprobs(model, rows).logp
    seen: list[int] = []
    mlp: Any = last(model).get_submodule("mlp")
    mlp.register_forward_hook(lambda m, i, o: seen.append(o.shape[1]))
    torch.testing.assert_close(logprobs(model, rows).logp, alone)
    assert seen == [66]


def test_a_reward_needs_one_token_of_the_last_layer(
    judge: Any, rows: Tokens, monkeypatch: Any
) -> None:
    model = judge("gpt2")
    want = [
        model(input_ids=rows.ids[row : row + 1, start : start + length]).logits[0, 0]
        for row, (start, length) in enumerate(zip(rows.starts, rows.lengths, strict=True))
    ]
    prepare_rewards(model)
    seen = widths(last(model), monkeypatch)
    got = rewards(model, rows, [length - 1 for length in rows.lengths])
    torch.testing.assert_close(got.double(), torch.stack(want), rtol=1e-6, atol=1e-6)
    assert seen == [4]


def test_a_copy_has_a_last_layer_of_its_own(tiny: Any, rows: Tokens) -> None:
    model = tiny("gpt2")
    rows = dataclasses.replace(rows, scored=PROMPTED)
    prepare_policy(model)
    before = logprobs(model, rows).logp
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in last(other).parameters():
            parameter.zero_()
    assert not torch.allclose(logprobs(other, rows).logp, before)
    torch.testing.assert_close(logprobs(model, rows).logp, before)


def test_what_cannot_be_trimmed_is_packed_all_the_same(tiny: Any) -> None:
    model = tiny("gpt2")
    layer = last(model)
    layer.__dict__["forward"] = type(layer).forward.__get__(layer)
    plan = prepare_policy(model)
    assert plan.packed
    assert not plan.trims
    assert plan.trim_reason == "the forward of its last layer has been replaced"
    model = tiny("gpt2")
    model.transformer.spare = nn.ModuleList(nn.Identity() for _ in range(2))
    plan = prepare_policy(model)
    assert (plan.packed, plan.trims, plan.trim_reason) == (
        True,
        False,
        "its layers are not one list",
    )


def test_wanted_places_by_hand(rows: Tokens) -> None:
    scored = dataclasses.replace(rows, scored=PROMPTED)
    (batch,) = layout.packed(scored, trim=True).batches
    segments = batch.inputs["fastrl_segments"]
    assert (segments.lengths, segments.wanted) == ((23, 16, 8, 19), (19, 1, 1, 8))
    ends = [*range(4, 23), 38, 46, *range(58, 66)]
    assert segments.kept(torch.device("cpu")).tolist() == ends
    assert layout.packed(scored).batches[0].inputs["fastrl_segments"].wanted is None
