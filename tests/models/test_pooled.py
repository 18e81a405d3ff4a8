"""Rewards of packed and shared spans against transformers' own forward of the padded batch."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from fastrl.models.policy import PACK_TOKENS
from fastrl.models.pooled import prepare_rewards, rewards
from fastrl.types import Shared, Tokens

CLOSE = {torch.float64: {"rtol": 1e-6, "atol": 1e-9}, torch.float32: {"rtol": 2e-4, "atol": 2e-5}}
PACKED = ["qwen2", "llama", "gpt2", "mistral", "mixtral"]
LENGTHS = [12, 7, 9, 12]
PAD = 0


@pytest.fixture
def pairs() -> Tokens:
    """Two pairs [chosen 0, chosen 1, rejected 0, rejected 1] that begin alike, padded behind."""
    ids = torch.randint(3, 97, (4, 12), generator=torch.Generator().manual_seed(3))
    ids[2, :5] = ids[0, :5]
    ids[3, :4] = ids[1, :4]
    for row, length in enumerate(LENGTHS):
        ids[row, length:] = PAD
    shared = (Shared((0, 2), 5), Shared((1, 3), 4))
    none = [np.empty(0, dtype=np.int64)] * 4
    return Tokens(ids, [0] * 4, list(LENGTHS), none, rows=[0, 1, 2, 3], shared=shared)


def at_the_end(tokens: Tokens) -> list[int]:
    return [length - 1 for length in tokens.lengths]


def own(model: Any, tokens: Tokens) -> torch.Tensor:
    mask = dataclasses.replace(tokens, rows=None).attention_mask
    return model(input_ids=tokens.ids, attention_mask=mask).logits[:, 0]


def quietly(model: Any, tokens: Tokens, pooled: list[int]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rewards(model, tokens, pooled)


@pytest.mark.parametrize("family", [*PACKED, "gemma2"])
def test_rewards_and_gradients_are_those_of_the_padded_batch(
    family: str, pairs: Tokens, grads: Any, judge: Any
) -> None:
    dtype = torch.float32 if family in ("mixtral", "gemma2") else torch.float64
    model = judge(family, dtype)
    plain = copy.deepcopy(model)
    weights = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=dtype)
    want = own(plain, pairs)
    (weights * want).sum().backward()
    theirs = grads(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = prepare_rewards(model)
    assert plan.packed == plan.shares_prefix == (family in PACKED)
    assert plan.head is not None
    for tokens in (pairs, dataclasses.replace(pairs, shared=())):
        fed: list[int] = []
        handle = model.get_input_embeddings().register_forward_hook(
            lambda m, i, o, fed=fed: fed.append(o.shape[0] * o.shape[1])
        )
        got = rewards(model, tokens, at_the_end(tokens))
        handle.remove()
        if plan.packed:
            assert fed == [sum(LENGTHS) - (5 + 4 if tokens.shared else 0)]
        (weights * got).sum().backward()
        torch.testing.assert_close(got, want, **CLOSE[dtype])
        mine = grads(model)
        assert mine.keys() == theirs.keys()
        for name, expected in theirs.items():
            limit = CLOSE[dtype]["rtol"] * max(expected.abs().max().item(), 1e-3)
            torch.testing.assert_close(mine[name], expected, rtol=0, atol=limit)


def test_pooling_elsewhere_and_padding_that_ends_rows(pairs: Tokens, judge: Any) -> None:
    """With the end-of-sequence token as padding, transformers judges the token before the end."""
    model = judge("llama")
    ids = pairs.ids.clone()
    for row, length in enumerate(LENGTHS):
        ids[row, length - 1] = PAD
    ended = dataclasses.replace(pairs, ids=ids)
    want = own(copy.deepcopy(model), ended)
    torch.testing.assert_close(
        rewards(model, ended, [length - 2 for length in LENGTHS]), want, **CLOSE[torch.float64]
    )
    assert (rewards(model, ended, at_the_end(ended)) - want).abs().min() > 1e-3
    early = rewards(model, ended, [2, 3, 4, 5])  # before the shared tokens end
    alone = [own(model, cut(ended, row, end)) for row, end in enumerate([3, 4, 5, 6])]
    torch.testing.assert_close(early, torch.cat(alone), **CLOSE[torch.float64])


def cut(tokens: Tokens, row: int, end: int) -> Tokens:
    return Tokens(tokens.ids[row : row + 1, :end], [0], [end], [end])


def test_pieces_come_back_in_order(pairs: Tokens, monkeypatch: Any, judge: Any) -> None:
    model = judge("gpt2")
    want = rewards(model, pairs, at_the_end(pairs))
    monkeypatch.setitem(PACK_TOKENS, "cpu", 18)
    calls: list[int] = []
    model.transformer.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        got = rewards(model, pairs, at_the_end(pairs))
    assert len(calls) == 2
    torch.testing.assert_close(got, want.detach(), **CLOSE[torch.float64])


@pytest.mark.parametrize("pad", [PAD, None])
def test_own_forward_where_the_head_is_another(pad: int | None, pairs: Tokens, judge: Any) -> None:
    model = judge("llama", pad_token_id=pad)
    model.score.register_forward_hook(lambda m, i, o: o + i[0].mean(1, keepdim=True)[..., :1])
    if pad is None:
        want = torch.cat([own(model, cut(pairs, row, n)) for row, n in enumerate(LENGTHS)])
    else:
        want = own(model, pairs)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        plan = prepare_rewards(model)
    assert plan.head is None
    assert any("read through its own forward" in str(one.message) for one in said)
    scrambled = dataclasses.replace(pairs, ids=pairs.ids + 5 * (pairs.ids == PAD))
    got = rewards(model, scrambled, at_the_end(pairs))
    torch.testing.assert_close(got, want, **CLOSE[torch.float64])


def test_lora_trains_its_score(pairs: Tokens, grads: Any, judge: Any) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["score"]
    )
    model = peft.get_peft_model(judge("llama"), config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    plain = copy.deepcopy(model)
    want = own(plain, pairs)
    want.square().sum().backward()
    got = rewards(model, pairs, at_the_end(pairs))
    got.square().sum().backward()
    assert prepare_rewards(model).packed
    torch.testing.assert_close(got, want, **CLOSE[torch.float64])
    mine, theirs = grads(model), grads(plain)
    assert any("score.modules_to_save" in name for name in theirs)
    assert mine.keys() == theirs.keys()
    for name, expected in theirs.items():
        limit = 1e-6 * max(expected.abs().max().item(), 1e-3)
        torch.testing.assert_close(mine[name], expected, rtol=0, atol=limit)


@pytest.mark.parametrize("mode", [False, True])
def test_checkpointing_gives_the_same_gradients(
    mode: bool, pairs: Tokens, grads: Any, judge: Any
) -> None:
    model = judge("llama").train()
    rewards(model, pairs, at_the_end(pairs)).square().sum().backward()
    want = grads(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": mode})
    rewards(model, pairs, at_the_end(pairs)).square().sum().backward()
    found = grads(model)
    assert found.keys() == want.keys()
    for name, expected in want.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-8, atol=1e-12)


def test_bf16_and_autocast_give_fp32(pairs: Tokens, judge: Any) -> None:
    model = judge("qwen2", torch.bfloat16)
    want = own(judge("qwen2", torch.float32), pairs)
    got = rewards(model, pairs, at_the_end(pairs))
    assert got.dtype == torch.float32
    assert (got - want).abs().max() < 0.1 * want.abs().max()
    wide = judge("qwen2", torch.float32)
    prepare_rewards(wide)
    with torch.autocast("cpu", torch.bfloat16):
        half = rewards(wide, pairs, at_the_end(pairs))
    assert half.dtype == torch.float32
    assert 0 < (half - want).abs().max() < 0.1 * want.abs().max()


def test_refusals(pairs: Tokens, tiny: Any, judge: Any) -> None:
    with pytest.raises(ValueError, match=r"got LlamaForSequenceClassification .*=2"):
        rewards(judge("llama", num_labels=2), pairs, at_the_end(pairs))
    with pytest.raises(ValueError, match="num_labels=1, got LlamaForCausalLM"):
        rewards(tiny("llama"), pairs, at_the_end(pairs))
    model = judge("llama")
    with pytest.raises(ValueError, match="pooled has 3 entries for 4 spans"):
        rewards(model, pairs, [0, 0, 0])
    with pytest.raises(ValueError, match=r"pooled\[1\] is 7, but span 1 has 7 tokens"):
        rewards(model, pairs, [0, 7, 0, 0])
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    with pytest.raises(ValueError, match="soft prompt"):
        rewards(peft.get_peft_model(model, config), pairs, at_the_end(pairs))
