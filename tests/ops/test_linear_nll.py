"""linear_nll: against float64 autograd and linear_token_logprobs, in chunks and in memory."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastrl import ops
from fastrl.ops import _linear_engines

sys.path.insert(0, str(Path(__file__).parent))
from linear_cases import FORMS, Form, make, off, oracle, peak_bytes


@pytest.fixture(params=["one chunk", "chunks of 5 rows"])
def chunks(request, monkeypatch):
    if request.param != "one chunk":
        monkeypatch.setattr(_linear_engines, "_LEAST_ROWS", 5)
        monkeypatch.setattr(_linear_engines, "_CHUNK_BYTES", {"cpu": 1})


def nll(case, form, leaves, token_weight):
    hidden, weight, bias = leaves
    return ops.linear_nll(hidden, weight, case.targets, token_weight, bias, **form.keywords)


def test_by_hand(backend, close):
    hidden = torch.tensor([[1.0], [0.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(3)]], requires_grad=True)
    # Row 0: p = 1/4, 3/4; row 1: 1/2, 1/2. 2 * log 4 + 10 * log 2.
    loss = ops.linear_nll(hidden, weight, torch.tensor([0, 1]), torch.tensor([2.0, 10.0]))
    close(loss, torch.tensor(2 * math.log(4) + 10 * math.log(2)))
    loss.backward()
    # d loss / d z: 2 * (p - [1, 0]) = [-1.5, 1.5] and 10 * (p - [0, 1]) = [5, -5].
    close(weight.grad, torch.tensor([[-1.5], [1.5]]))
    close(hidden.grad, torch.tensor([[1.5 * math.log(3)], [-5 * math.log(3)]]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("frozen", [False, True])
def test_matches_float64(backend, chunks, form, frozen, close):
    case = make(form)
    leaves = case.leaves(frozen)
    token_weight = case.g.clone().requires_grad_()
    loss = nll(case, form, leaves, token_weight)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    (3 * loss).backward()
    expected, wanted = oracle(case, form, -3 * case.g, None)
    right = -(expected["logp"] * case.g).sum()
    torch.testing.assert_close(loss.double(), right, rtol=1e-5, atol=1e-5)
    close(token_weight.grad, -3 * expected["logp"].float())
    grads = [t.grad for t in leaves if t is not None and t.requires_grad]
    assert len(grads) == (1 if frozen else len(wanted))
    for actual, gradient in zip(grads, wanted, strict=False):
        assert off(actual, gradient) < 3e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs(chunks, dtype):
    case = make(shape=(40, 16, 700), dtype=dtype)
    _, wanted = oracle(case, Form(), -case.g, None)
    hidden, weight, _ = case.leaves()
    logps = torch.log_softmax((hidden @ weight.t()).float(), dim=1)
    plain = -(logps.gather(1, case.targets[:, None])[:, 0] * case.g).sum()
    plain_grads = torch.autograd.grad(plain, (hidden, weight))
    loss = nll(case, Form(), case.leaves(), case.g)
    assert loss.dtype == torch.float32
    nll(case, Form(), (hidden, weight, None), case.g).backward()
    for leaf, eager, right in zip((hidden, weight), plain_grads, wanted, strict=True):
        assert leaf.grad.dtype == dtype
        assert off(leaf.grad, right) < 1.3 * off(eager, right)


def test_equals_linear_token_logprobs(backend, close):
    case = make(FORMS[3])
    leaves = case.leaves()
    hidden, weight, bias = leaves
    logp, _ = ops.linear_token_logprobs(hidden, weight, case.targets, bias, **FORMS[3].keywords)
    other = torch.autograd.grad(-(logp * case.g).sum(), leaves)
    grads = torch.autograd.grad(nll(case, FORMS[3], leaves, case.g), leaves)
    for a, b in zip(grads, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_tokens_of_weight_0_do_not_count(backend, chunks):
    form = Form(bias=True)
    case = make(form)
    bias = case.bias.clone()
    bias[case.targets[4]] = -math.inf
    impossible = case.targets == case.targets[4]
    token_weight = case.g.masked_fill(impossible, 0.0).requires_grad_()
    case = replace(case, bias=bias)
    leaves = case.leaves()
    loss = nll(case, form, leaves, token_weight)
    loss.backward()
    assert loss.isfinite()
    assert all(leaf.grad.isfinite().all() for leaf in (*leaves, token_weight))
    assert (leaves[0].grad[impossible] == 0).all()
    counted = ~impossible
    few = replace(case, hidden=case.hidden[counted], targets=case.targets[counted])
    alone = nll(few, form, few.leaves(), case.g[counted])
    torch.testing.assert_close(loss, alone, rtol=1e-5, atol=1e-5)


def test_a_counted_token_that_cannot_be_is_infinite(backend):
    form = Form(bias=True)
    case = make(form)
    bias = case.bias.clone()
    bias[case.targets[4]] = -math.inf
    loss = nll(case, form, (case.hidden, case.weight, bias), torch.ones(13))
    assert loss == math.inf


@pytest.mark.parametrize("shape", [(0, 8, 30), (1, 8, 30), (5, 8, 1), (5, 1, 257)])
def test_sizes(backend, shape):
    case = make(FORMS[3], shape)
    leaves = case.leaves()
    loss = nll(case, FORMS[3], leaves, case.g)
    loss.backward()
    expected, wanted = oracle(case, FORMS[3], -case.g, None)
    right = -(expected["logp"] * case.g).sum()
    torch.testing.assert_close(loss.double(), right, rtol=1e-5, atol=1e-5)
    for leaf, gradient in zip(leaves, wanted, strict=True):
        torch.testing.assert_close(leaf.grad, gradient.float(), rtol=1e-5, atol=1e-5)


def test_everything_masked(backend, chunks):
    case = make()
    leaves = case.leaves()
    loss = nll(case, Form(), leaves, torch.zeros(13))
    loss.backward()
    assert loss == 0
    assert (leaves[0].grad == 0).all()
    assert (leaves[1].grad == 0).all()


def test_without_gradients(backend, close):
    case = make()
    with torch.no_grad():
        loss = nll(case, Form(), case.leaves(), case.g)
    assert not loss.requires_grad
    expected, _ = oracle(case, Form(), case.g, None)
    close(loss, -(expected["logp"] * case.g).sum().float())


def test_float64_runs_in_float64():
    case = make(FORMS[3], (4, 3, 7), torch.float64)
    token_weight = case.g.double().requires_grad_()

    def run(hidden, weight, bias, token_weight):
        return nll(case, FORMS[3], (hidden, weight, bias), token_weight)

    assert torch.autograd.gradcheck(run, (*case.leaves(), token_weight))


def test_the_graph_can_be_walked_twice_and_inputs_stay(backend):
    case = make()
    leaves = case.leaves()[:2]
    loss = nll(case, Form(), (*leaves, None), case.g)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(2 * loss, leaves)
    assert all(torch.equal(2 * a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(leaves[0].detach(), case.hidden)


def test_a_second_derivative_is_refused(cpp):
    case = make()
    leaves = case.leaves()
    loss = nll(case, Form(), leaves, case.g)
    first = torch.autograd.grad(loss, leaves[:2], create_graph=True)
    with pytest.raises(RuntimeError, match="linear_nll has no second derivative"):
        sum(t.square().sum() for t in first).backward()


def test_memory(cpp, monkeypatch):
    monkeypatch.setattr(_linear_engines, "_CHUNK_BYTES", {"cpu": 1 << 23})
    case = make(shape=(1024, 8, 16384))
    leaves = case.leaves()
    head = case.weight.nbytes
    peak = peak_bytes(lambda: nll(case, Form(), leaves, case.g).backward())
    assert peak <= (1 << 23) + 3 * head + (1 << 20)


def test_compiled_equals_eager(backend):
    case = make(FORMS[1])

    def run(hidden, weight, bias, token_weight):
        return nll(case, FORMS[1], (hidden, weight, bias), token_weight)

    found = []
    for function in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
        leaves = (*case.leaves(), case.g.clone().requires_grad_())
        loss = function(*leaves)
        (2 * loss).backward()
        found.append([loss, *(leaf.grad for leaf in leaves)])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)


def test_the_registered_operation_keeps_torch_s_rules():
    case = make(FORMS[3], (5, 3, 11))
    hidden, weight, bias = case.leaves()
    numbers = (0.7, 3.0, 1.2, [True, True, True])
    arguments = (hidden, weight, case.targets, case.g, bias, *numbers)
    torch.library.opcheck(torch.ops.fastrl.linear_nll.default, arguments)


@pytest.mark.parametrize(
    ("token_weight", "error", "message"),
    [
        (torch.ones(3, dtype=torch.bool), TypeError, "token_weight must be floating point"),
        (torch.ones(2), ValueError, r"token_weight has shape \(2,\), targets has \(3,\)"),
        (torch.ones(3, device="meta"), ValueError, "token_weight is on meta"),
        ([1.0, 1.0, 1.0], TypeError, "token_weight must be a torch.Tensor"),
    ],
)
def test_bad_token_weight(backend, token_weight, error, message):
    with pytest.raises(error, match=message):
        targets = torch.zeros(3, dtype=torch.int64)
        ops.linear_nll(torch.zeros(3, 4), torch.zeros(7, 4), targets, token_weight)


def test_bad_targets(backend):
    with pytest.raises(ValueError, match=r"targets\[1\] is 7, outside \[0, 7\)"):
        targets = torch.tensor([0, 7, 1])
        ops.linear_nll(torch.zeros(3, 4), torch.zeros(7, 4), targets, torch.ones(3))
