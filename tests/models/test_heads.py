"""Heads that are a matrix, heads that must be called, and adapters around either."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from fastrl.models import door
from fastrl.models.policy import logprobs, prepare_policy
from fastrl.types import Tokens

linear_token_logprobs = sys.modules["fastrl.ops.linear_token_logprobs"]  # the module

CLOSE = {"rtol": 1e-6, "atol": 1e-9}


def test_only_a_plain_linear_is_read_as_a_matrix() -> None:
    head = nn.Linear(3, 5)
    weight, bias = door.head_matrix(head)
    assert weight is head.weight
    assert bias is head.bias
    hooks = (
        lambda m: m.register_forward_hook(lambda *_: None),
        lambda m: m.register_forward_pre_hook(lambda *_: None),
        lambda m: m.register_full_backward_hook(lambda *_: None),
    )
    for hook in hooks:
        handle = hook(head)
        assert door.head_matrix(head) is None
        handle.remove()
    assert door.head_matrix(head) is not None
    head.forward = lambda x: x
    assert door.head_matrix(head) is None
    assert door.head_matrix(nn.Sequential(nn.Linear(3, 5))) is None

    class Quantized(nn.Linear):
        pass

    assert door.head_matrix(Quantized(3, 5)) is None


@pytest.mark.parametrize("family", ["gpt2", "cohere"])
def test_head_with_bias_or_hook_equals_plain_calls(
    family: str, tiny: Any, rows: Tokens, separately: Any, twin: Any
) -> None:
    model = tiny(family)
    wide = model.lm_head
    model.lm_head = nn.Linear(wide.in_features, wide.out_features).double()
    nn.init.normal_(model.lm_head.weight, std=0.2)
    nn.init.normal_(model.lm_head.bias)
    truth = separately(twin(model), rows)
    assert prepare_policy(model).head is not None
    torch.testing.assert_close(logprobs(model, rows).logp, truth.logp, **CLOSE)
    calls = []
    model.lm_head.register_forward_hook(lambda m, i, o: calls.append(o.shape[:-1]))
    got = logprobs(model, rows)
    scored = sum(n - s for n, s in zip(rows.lengths, rows.scored, strict=True))
    assert calls == [(scored,)]  # on the scored positions alone
    torch.testing.assert_close(got.logp, truth.logp, **CLOSE)
    torch.testing.assert_close(got.entropy, truth.entropy, **CLOSE)


@pytest.mark.parametrize("where", ["layers", "head", "saved head"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_adapters_equal_plain_calls(
    family: str, where: str, tiny: Any, rows: Tokens, separately: Any, grads: Any
) -> None:
    peft = pytest.importorskip("peft")
    targets = ["c_attn"] if family == "gpt2" else ["q_proj"]
    if where == "head":
        targets = [*targets, "lm_head"]
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=targets,
        modules_to_save=["lm_head"] if where == "saved head" else None,
        fan_in_fan_out=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(tiny(family), config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(std=0.2)
    truth = separately(model, rows)
    (truth.logp.sum() + truth.entropy.sum()).backward()
    theirs = grads(model)
    assert prepare_policy(model).packed
    got = logprobs(model, rows)
    (got.logp.sum() + got.entropy.sum()).backward()
    mine = grads(model)
    torch.testing.assert_close(got.logp, truth.logp, **CLOSE)
    assert mine.keys() == theirs.keys()
    # Llama's norms are fp32 in any model, and their backward rounds once per run of the last layer.
    close = {"rtol": 1e-6, "atol": 1e-8} if family == "gpt2" else {"rtol": 2e-5, "atol": 2e-6}
    for name, want in theirs.items():
        torch.testing.assert_close(mine[name], want, **close)
    with model.disable_adapter():
        off = logprobs(model, rows)
        torch.testing.assert_close(off.logp, separately(model, rows).logp, **CLOSE)
    assert (off.logp - got.logp).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_soft_prompts_are_scored_by_plain_calls(
    kind: str, tiny: Any, rows: Tokens, separately: Any
) -> None:
    peft = pytest.importorskip("peft")
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(tiny("llama", torch.float32), config).eval()
    want = torch.zeros(4, 23)
    for row, (start, length) in enumerate(zip(rows.starts, rows.lengths, strict=True)):
        ids = rows.ids[row : row + 1, start : start + length]
        logits = model(input_ids=ids).logits[0, -length:-1]
        taken = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        first = rows.scored[row] - 1
        want[row, start + first : start + length - 1] = taken[first:]
    with pytest.warns(UserWarning, match="a soft prompt precedes each row"):
        got = logprobs(model, rows)
    torch.testing.assert_close(got.logp, want, rtol=1e-4, atol=1e-5)
    assert got.values is None
    got.logp.sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize(("budget", "engine"), [(0, "frozen"), (1 << 30, "keep")])
def test_a_frozen_head_is_asked_for_no_gradient(
    budget: int, engine: str, tiny: Any, rows: Tokens, grads: Any, monkeypatch: Any
) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    model = peft.get_peft_model(tiny("llama", torch.float32), config)
    logprobs(model, rows).logp.square().sum().backward()
    want = grads(model)
    assert all("lora" in name for name in want)
    chosen = []
    choose = linear_token_logprobs.choose_engine

    def spy(hidden: torch.Tensor, weight: torch.Tensor, bias: Any) -> str:
        assert not weight.requires_grad
        chosen.append(choose(hidden, weight, bias))
        return chosen[-1]

    monkeypatch.setattr(linear_token_logprobs, "choose_engine", spy)
    monkeypatch.setattr(linear_token_logprobs, "logits_budget", lambda device: budget)
    logprobs(model, rows).logp.square().sum().backward()
    assert chosen == [engine]
    for name, got in grads(model).items():
        torch.testing.assert_close(got, want[name], rtol=1e-4, atol=1e-6)
