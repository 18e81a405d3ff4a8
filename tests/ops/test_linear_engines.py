"""The engines of linear_token_logprobs: each against float64 autograd, in tiles and whole rows."""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastrl.ops import _linear_engines
from fastrl.ops._linear_tiles import CppTiles, WholeRows
from fastrl.ops.linear_token_logprobs import _Linear

sys.path.insert(0, str(Path(__file__).parent))
from linear_cases import ENGINES, FORMS, STATS, Form, make, off, oracle

# `ops.linear_token_logprobs` is the function; this is its file.
linear_module = importlib.import_module("fastrl.ops.linear_token_logprobs")
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=["tiles", "whole rows"])
def cut(request, monkeypatch):
    """The C++ tiles of a few columns each, or chunks of a few whole rows of the reference."""
    monkeypatch.setattr(_linear_engines, "_TILE_ELEMENTS", 64 * 13)
    monkeypatch.setattr(_linear_engines, "_LEAST_COLUMNS", 64)
    monkeypatch.setattr(_linear_engines, "_LEAST_ROWS", 5)
    monkeypatch.setattr(_linear_engines, "_CHUNK_BYTES", {"cpu": 1})
    if request.param == "whole rows":
        return WholeRows
    request.getfixturevalue("cpp")
    return CppTiles


def engine_gradients(case, form, engine, backend, g, h):
    """logp, entropy, table of statistics, and the gradients of what requires one."""
    leaves = case.leaves(frozen=engine == "frozen")
    hidden, weight, bias = leaves
    numbers = (form.temperature, form.softcap, form.scale)
    arguments = (hidden, weight, case.targets, bias, *numbers, engine, True, backend)
    logp, entropy, *_, table = _Linear.apply(*arguments)
    pairs = [(r, x) for r, x in ((logp, g), (entropy, h)) if x is not None]
    torch.autograd.backward([r for r, _ in pairs], [x for _, x in pairs])
    return logp, entropy, table, [t.grad for t in leaves if t is not None and t.requires_grad]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("asked", ["logp", "entropy", "both"])
def test_engines_match_float64(cut, engine, form, asked, close):
    case = make(form)
    g = case.g if asked != "entropy" else None
    h = case.h if asked != "logp" else None
    logp, entropy, table, gradients = engine_gradients(case, form, engine, cut, g, h)
    assert logp.dtype == entropy.dtype == table.dtype == torch.float32
    expected, wanted = oracle(case, form, g, h)
    results = dict(zip(STATS, table, strict=True), logp=logp, entropy=entropy)
    for name, value in results.items():
        close(value, expected[name].float())
    for gradient, right in zip(gradients, wanted, strict=False):
        assert off(gradient, right) < 3e-6


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("engine", ENGINES)
def test_16_bit_inputs(cut, dtype, engine):
    # As exact as the plain way: logits in 16 bits, log-softmax in fp32, one product a gradient.
    case = make(shape=(40, 16, 700), dtype=dtype)
    expected, wanted = oracle(case, Form(), case.g, case.h)
    hidden, weight, _ = case.leaves()
    logps = torch.log_softmax((hidden @ weight.t()).float(), dim=1)
    plain = logps.gather(1, case.targets[:, None])[:, 0]
    entropy = -(logps.exp() * logps).sum(1)
    ((plain * case.g).sum() + (entropy * case.h).sum()).backward()
    found = engine_gradients(case, Form(), engine, cut, case.g, case.h)
    assert found[0].dtype == torch.float32
    assert off(found[0], expected["logp"]) < 1.2 * off(plain, expected["logp"])
    for actual, leaf, right in zip(found[3], (hidden, weight), wanted, strict=False):
        assert actual.dtype == dtype
        assert off(actual, right) < 1.3 * off(leaf.grad, right)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_many_pieces_sum_like_one(cut, dtype, monkeypatch):
    # Products summed over tiles: in 16 bits each sum would lose most of 60 pieces.
    case = make(shape=(61, 4, 61 * 64), dtype=dtype)
    one = Form(softcap=4.0)
    pieces = engine_gradients(case, one, "recompute", cut, case.g, case.h)
    monkeypatch.setattr(_linear_engines, "_TILE_ELEMENTS", 1 << 30)
    monkeypatch.setattr(_linear_engines, "_CHUNK_BYTES", {"cpu": 1 << 30})
    whole = engine_gradients(case, one, "recompute", cut, case.g, case.h)
    allowed = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    for a, b in zip(pieces[3], whole[3], strict=True):
        assert off(a, b.double()) < allowed


@pytest.mark.parametrize("shape", [(0, 8, 301), (1, 8, 301), (5, 8, 1), (5, 8, 2), (5, 1, 257)])
@pytest.mark.parametrize("engine", ENGINES)
def test_sizes(cut, engine, shape, close):
    case = make(FORMS[3], shape)
    found = engine_gradients(case, FORMS[3], engine, cut, case.g, case.h)
    expected, wanted = oracle(case, FORMS[3], case.g, case.h)
    close(found[0], expected["logp"].float())
    close(found[1], expected["entropy"].float())
    for actual, right in zip(found[3], wanted, strict=False):
        assert actual.shape == right.shape
        torch.testing.assert_close(actual, right.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_tokens_that_cannot_be(cut, engine, close):
    case = make(FORMS[1])
    possible = torch.arange(0, 301, 3)
    bias = torch.full((301,), -math.inf)
    bias[possible] = case.bias[possible]
    masked = replace(case, bias=bias, targets=case.targets // 3 * 3)
    found = engine_gradients(masked, FORMS[1], engine, cut, case.g, case.h)
    small = replace(
        case, weight=case.weight[possible], bias=case.bias[possible], targets=case.targets // 3
    )
    expected, wanted = oracle(small, FORMS[1], case.g, case.h)
    close(found[0], expected["logp"].float())
    close(found[1], expected["entropy"].float())
    assert off(found[3][0], wanted[0]) < 3e-6
    if engine != "frozen":
        assert off(found[3][1][possible], wanted[1]) < 3e-6
        assert (found[3][1][1::3] == 0).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("offset", [-200.0, 3e4])
def test_a_common_offset_changes_nothing(cut, engine, offset, close):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randint(-4, 5, (6, 4), generator=generator).float()
    weight = torch.randint(-4, 5, (301, 4), generator=generator) / 8.0
    case = replace(make(Form(bias=True), (6, 4, 301)), hidden=hidden, weight=weight)
    plain = replace(case, bias=torch.zeros(301))
    moved = replace(case, bias=torch.full((301,), offset))
    found = engine_gradients(moved, Form(), engine, cut, case.g, case.h)
    expected, wanted = oracle(plain, Form(), case.g, case.h)
    close(found[0], expected["logp"].float())
    close(found[1], expected["entropy"].float())
    # Whole rows of the reference and the C++ tiles know the log-sum-exp to better than fp32.
    for actual, right in zip(found[3], wanted, strict=False):
        assert off(actual, right) < 3e-6


@pytest.mark.parametrize("engine", ENGINES)
def test_near_certainty_keeps_its_digits(cut, engine):
    # Logits 30 at the target and 0 elsewhere: 1 - p = 300 e^-30 / (1 + 300 e^-30).
    weight = torch.zeros(301, 2)
    weight[200] = torch.tensor([30.0, 0.0])
    case = replace(
        make(shape=(1, 2, 301)),
        hidden=torch.tensor([[1.0, 0.0]]),
        weight=weight,
        targets=torch.tensor([200]),
        g=torch.ones(1),
    )
    logp, _, _, gradients = engine_gradients(case, Form(), engine, cut, case.g, None)
    others = 300 * math.exp(-30.0)
    assert logp.item() == pytest.approx(-others, rel=1e-5)
    # d logp / d hidden = W_y - p W = 30 (1 - p)
    assert gradients[0][0, 0].item() == pytest.approx(30 * others, rel=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_without_incoming_gradient_add_nothing(cut, engine):
    form = Form(bias=True)
    case = make(form)
    bias = case.bias.clone()
    bias[case.targets[3]] = -math.inf  # the logp of row 3 is -inf
    counted = torch.tensor([i for i in range(13) if case.targets[i] != case.targets[3]])
    g = torch.zeros(13)
    g[counted] = case.g[counted]
    some = replace(case, bias=bias)
    found = engine_gradients(some, form, engine, cut, g, None)
    fewer = replace(some, hidden=case.hidden[counted], targets=case.targets[counted])
    alone = engine_gradients(fewer, form, engine, cut, g[counted], None)
    torch.testing.assert_close(found[3][0][counted], alone[3][0], rtol=1e-5, atol=1e-6)
    assert (found[3][0][3] == 0).all()
    for a, b in zip(found[3][1:], alone[3][1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    nothing = engine_gradients(some, form, engine, cut, torch.zeros(13), None)
    assert all((gradient == 0).all() for gradient in nothing[3])


@pytest.mark.parametrize("engine", ["keep", "recompute"])
def test_gradcheck(engine):
    case = make(FORMS[3], (4, 3, 7), torch.float64)

    def run(hidden, weight, bias):
        numbers = (0.7, 3.0, 1.2)
        arguments = (hidden, weight, case.targets, bias, *numbers, engine, False, WholeRows)
        return _Linear.apply(*arguments)[:2]

    assert torch.autograd.gradcheck(run, case.leaves())


def test_gradcheck_with_a_frozen_head():
    case = make(FORMS[3], (4, 3, 7), torch.float64)
    hidden, weight, bias = case.leaves(frozen=True)

    def run(hidden):
        numbers = (0.7, 3.0, 1.2)
        arguments = (hidden, weight, case.targets, bias, *numbers, "frozen", False, WholeRows)
        return _Linear.apply(*arguments)[:2]

    assert torch.autograd.gradcheck(run, (hidden,))
    assert torch.autograd.gradcheck(lambda hidden: run(hidden)[0], (hidden,))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_graph_can_be_walked_twice_and_inputs_stay(cut, engine):
    case = make(FORMS[3])
    leaves = case.leaves(frozen=engine == "frozen")
    hidden, weight, bias = leaves
    before = [t.detach().clone() for t in leaves]
    arguments = (hidden, weight, case.targets, bias, 1.3, 3.0, 0.5, engine, False, cut)
    logp, entropy, *_ = _Linear.apply(*arguments)
    loss = (logp * case.g).sum() + entropy.sum()
    wanted = [t for t in leaves if t.requires_grad]
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    second = torch.autograd.grad(loss, wanted)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b.detach()) for a, b in zip(before, leaves, strict=True))


def test_a_frozen_head_makes_no_product_in_the_backward(cut, monkeypatch):
    case = make()

    def refuse(*_):
        raise AssertionError("the backward swept the head again")

    monkeypatch.setattr(linear_module, "gradients", refuse)
    found = engine_gradients(case, Form(), "frozen", cut, case.g, None)
    _, wanted = oracle(case, Form(), case.g, None)
    assert off(found[3][0], wanted[0]) < 3e-6
