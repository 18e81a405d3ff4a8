"""NEFTune's noise on packed and padded spans: bounded by each span's own length."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

from fastrl.models.policy import logprobs, prepare_policy
from fastrl.types import Shared, Tokens

ALPHA = 5.0


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_noise_is_that_of_each_span_alone(
    family: str, packed: bool, head: bool, tiny: Any, rows: Tokens
) -> None:
    model = tiny(family, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0)
    plan = prepare_policy(model)
    changes = {"packed": packed} if head else {"packed": packed, "head": None}
    model.__dict__["_fastrl_plan"] = dataclasses.replace(plan, **changes)
    width = model.config.hidden_size
    embeddings = model.get_input_embeddings()
    seen: list[torch.Tensor] = []
    handle = activate_neftune(model, ALPHA)
    spy = embeddings.register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    dressed: list[torch.Tensor] = []
    layers = model.transformer.h if family == "gpt2" else model.model.layers
    layers[0].register_forward_pre_hook(lambda m, i: dressed.append(i[0].detach()))
    model.train()
    tokens = dataclasses.replace(rows, scored=[1] * 4)
    noisy = logprobs(model, tokens)
    deactivate_neftune(model, handle)
    quiet = logprobs(model, tokens)
    spy.remove()
    assert (noisy.logp - quiet.logp).abs().max() > 1e-3
    noise = (dressed[0] - dressed[1]).abs()
    if packed:
        parts = noise[0].split([length - 1 for length in rows.lengths])
    else:
        parts = [noise[span, :length] for span, length in enumerate(rows.lengths)]
    for part, length in zip(parts, rows.lengths, strict=True):
        bound = ALPHA / math.sqrt(length * width)
        assert 0.9 * bound < part.max() <= bound * (1 + 1e-6)
        # The mean of a uniform |x| is half its bound; 8 tokens of 32 numbers tell it to 5 %.
        assert abs(part.mean() / bound - 0.5) < 0.1


def test_noise_only_in_training_and_left_as_it_was(tiny: Any, rows: Tokens) -> None:
    model = tiny("llama")
    want = logprobs(model, rows).logp
    handle = activate_neftune(model, ALPHA)
    assert torch.equal(logprobs(model, rows).logp, want)
    model.train()
    logprobs(model, rows)
    embeddings = model.get_input_embeddings()
    assert embeddings.neftune_noise_alpha == ALPHA
    assert len(embeddings._forward_hooks) == 1
    deactivate_neftune(model, handle)
    assert torch.equal(logprobs(model, rows).logp, want)


def test_noisy_spans_share_nothing(tiny: Any) -> None:
    model = tiny("llama")
    prepare_policy(model)
    ids = torch.randint(3, 97, (2, 9))
    ids[1, :5] = ids[0, :5]
    tokens = Tokens(ids, [0, 0], [9, 9], [5, 5], shared=(Shared((0, 1), 5),))
    fed: list[int] = []
    activate_neftune(model, ALPHA)
    model.get_input_embeddings().register_forward_hook(lambda m, i, o: fed.append(o.shape[1]))
    logprobs(model, tokens)
    model.train()
    logprobs(model, tokens)
    assert fed == [12, 16]
