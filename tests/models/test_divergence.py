"""divergences: two models compared through their doors, against plain calls of fresh copies."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastrl import ops
from fastrl.models.divergence import divergences


@pytest.fixture
def by_definition():
    """by_definition(student, teacher, tokens, beta, temperature): sums over probabilities."""

    def compare(student, teacher, tokens, beta, temperature):
        found = torch.zeros(tokens.ids.shape[0], tokens.ids.shape[1] - 1, dtype=torch.float64)
        for row, (start, length) in enumerate(zip(tokens.starts, tokens.lengths, strict=True)):
            ids = tokens.ids[row : row + 1, start : start + length]
            s, t = (
                (one(input_ids=ids).logits[0, :-1].double() / temperature).log_softmax(-1)
                for one in (student, teacher)
            )
            t = t.detach()
            p, q = s.exp(), t.exp()
            m = ((1 - beta) * p + beta * q).log()
            each = {0.0: q * (t - s), 1.0: p * (s - t)}.get(
                beta, (1 - beta) * p * (s - m) + beta * q * (t - m)
            )
            first = tokens.scored[row] - 1
            places = slice(start + first, start + length - 1)
            found[row, places] = each.sum(-1)[first:]
        return found

    return compare


def quietly(*arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return divergences(*arguments)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("qwen2", "llama"),
        ("gemma2", "granite"),  # a cap on one side, a scale on the other
        ("qwen2", "mamba"),  # packed and padded: places come in another order
        ("mamba", "qwen2"),
    ],
)
def test_two_models(tiny, twin, rows, grads, by_definition, student, teacher):
    exact = {student, teacher} == {"qwen2", "llama"}
    dtype = torch.float64 if exact else torch.float32  # in which not all families can compute
    model, judge = tiny(student, dtype), tiny(teacher, dtype, hidden_size=16)
    expected = by_definition(twin(model), twin(judge), rows, 0.3, 0.7)
    learnt = twin(model)
    found = quietly(model, judge, rows, 0.3, 0.7)
    close = {"rtol": 1e-6, "atol": 1e-9} if exact else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(found.divergence.double(), expected, **close)
    assert found.mask.sum() == (expected > 0).sum()
    weights = torch.randn(expected.shape, dtype=torch.float64)
    (found.divergence * weights).sum().backward()
    (by_definition(learnt, judge, rows, 0.3, 0.7) * weights).sum().backward()
    wanted = grads(learnt)
    assert grads(judge) == {}
    for name, gradient in grads(model).items():
        # Norms are computed in float32 by the models themselves.
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("side", ["student", "teacher", "neither"])
def test_heads_that_are_no_matrix(tiny, twin, rows, by_definition, beta, side):
    """A hook on a head, as an adapter or a shard would be: it is called, and logits compared."""
    model, judge = tiny("qwen2", torch.float32), tiny("llama", torch.float32)
    expected = by_definition(twin(model), twin(judge), rows, beta, 1.0)
    hooked = {"student": model, "teacher": judge}.get(side)
    if hooked is not None:
        hooked.lm_head.register_forward_hook(lambda *_: None)
    found = quietly(model, judge, rows, beta)
    torch.testing.assert_close(found.divergence.double(), expected, rtol=1e-4, atol=1e-6)
    entropy = found.entropy[found.mask]
    z = twin(model)(input_ids=rows.ids[:1]).logits[0, 4:-1].double().log_softmax(-1)
    right = -(z.exp() * z).sum(-1)
    torch.testing.assert_close(entropy[: len(right)].double(), right, rtol=1e-4, atol=1e-5)


def test_nothing_to_compare_is_still_connected(tiny, rows):
    model, judge = tiny("qwen2", torch.float32), tiny("llama", torch.float32)
    none = replace(rows, scored=rows.lengths)
    found = quietly(model, judge, none)
    assert not found.mask.any()
    found.divergence.sum().backward()
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


def test_the_last_columns(tiny, rows):
    found = quietly(tiny("qwen2"), tiny("llama"), rows)
    assert torch.equal(found.last(3).divergence, found.divergence[:, -3:])
    assert torch.equal(found.last(3).mask, found.mask[:, -3:])


def test_no_row_of_logits_too_many(tiny, rows, monkeypatch):
    """What is not scored reaches neither head."""
    seen = []
    plain = ops.token_divergence

    def counted(**given):
        seen.append((len(given["hidden"]), len(given["teacher_hidden"])))
        return plain(**given)

    monkeypatch.setattr("fastrl.models.divergence.token_divergence", counted)
    quietly(tiny("qwen2"), tiny("llama"), rows)
    scored = sum(n - s for n, s in zip(rows.lengths, rows.scored, strict=True))
    assert seen == [(scored, scored)]


def test_vocabularies_of_different_size(tiny, rows):
    judge = tiny("llama", vocab_size=200)
    with pytest.raises(ValueError, match="teacher_weight has 200 tokens"):
        quietly(tiny("qwen2"), judge, rows)


def test_a_soft_prompt_is_refused(tiny, rows):
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = peft.get_peft_model(tiny("qwen2", torch.float32), config)
    assert isinstance(model, nn.Module)
    with pytest.raises(ValueError, match="student: a soft prompt"):
        quietly(model, tiny("llama", torch.float32), rows)
