"""linear_token_logprobs: each engine against float64 autograd, at the edges, and in memory."""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastrl import ops
from fastrl.ops import _linear_engines
from fastrl.ops._linear_tiles import CppTiles, WholeRows
from fastrl.ops._logits_budget import logits_budget, set_logits_budget
from fastrl.ops.linear_token_logprobs import _Linear, choose_engine

sys.path.insert(0, str(Path(__file__).parent))
from linear_cases import FORMS, STATS, Form, make, off, oracle, peak_bytes

# `ops.linear_token_logprobs` is the function; this is its file.
linear_module = importlib.import_module("fastrl.ops.linear_token_logprobs")
ENGINES = ["keep", "recompute", "frozen"]
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def default_budget():
    yield
    set_logits_budget(None)


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


def test_by_hand(backend, close):
    # z = 2 * [0, log 2, log 5] = log [1, 4, 25] of 30.
    hidden = torch.tensor([[1.0, 2.0]])
    weight = torch.tensor([[0.0, 0.0], [math.log(2), 0.0], [math.log(5) - 2, 1.0]])
    logp, entropy, stats = ops.linear_token_logprobs(
        hidden, weight, torch.tensor([2]), scale=2.0, stats=STATS
    )
    close(logp, torch.tensor([math.log(25 / 30)]))
    p = torch.tensor([1 / 30, 4 / 30, 25 / 30])
    close(entropy, -(p * p.log()).sum()[None])
    close(stats["top1"], torch.ones(1))
    close(stats["mean_logit"], torch.tensor([math.log(100) / 3]))
    close(stats["log_sum_sq"], p.square().sum().log()[None])


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


@pytest.mark.parametrize("form", FORMS)
def test_public_call_matches_float64(backend, form, close):
    case = make(form)
    hidden, weight, bias = leaves = case.leaves()
    logp, entropy = ops.linear_token_logprobs(hidden, weight, case.targets, bias, **form.keywords)
    ((logp * case.g).sum() + (entropy * case.h).sum()).backward()
    expected, wanted = oracle(case, form, case.g, case.h)
    close(logp, expected["logp"].float())
    close(entropy, expected["entropy"].float())
    for leaf, right in zip((t for t in leaves if t is not None), wanted, strict=True):
        assert off(leaf.grad, right) < 3e-6


def test_statistics_come_in_the_order_asked_and_without_gradient(backend, close):
    case = make(FORMS[1])
    hidden, weight, bias = case.leaves()
    *_, stats = ops.linear_token_logprobs(
        hidden, weight, case.targets, bias, stats=("log_sum_sq", "top1"), **FORMS[1].keywords
    )
    assert list(stats) == ["log_sum_sq", "top1"]
    assert not any(value.requires_grad for value in stats.values())
    expected, _ = oracle(case, FORMS[1], case.g, None)
    for name, value in stats.items():
        close(value, expected[name].float())


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


def test_only_what_is_asked_for_gets_a_gradient(backend):
    case = make(FORMS[1])
    for wanted in ("weight", "bias", "hidden"):
        tensors = {"hidden": case.hidden, "weight": case.weight, "bias": case.bias}
        tensors[wanted] = tensors[wanted].clone().requires_grad_()
        logp, entropy = ops.linear_token_logprobs(targets=case.targets, **tensors)
        ((logp * case.g).sum() + (entropy * case.h).sum()).backward()
        _, gradients = oracle(case, Form(), case.g, case.h)
        right = dict(zip(("hidden", "weight", "bias"), gradients, strict=True))[wanted]
        assert off(tensors[wanted].grad, right) < 3e-6
        assert all(t.grad is None for name, t in tensors.items() if name != wanted)


def test_a_frozen_head_makes_no_product_in_the_backward(cut, monkeypatch):
    case = make()

    def refuse(*_):
        raise AssertionError("the backward swept the head again")

    monkeypatch.setattr(linear_module, "gradients", refuse)
    found = engine_gradients(case, Form(), "frozen", cut, case.g, None)
    _, wanted = oracle(case, Form(), case.g, None)
    assert off(found[3][0], wanted[0]) < 3e-6


def test_inputs_and_gradients_of_any_layout(backend, close):
    case = make()
    hidden = torch.empty(8, 13).t().copy_(case.hidden).requires_grad_()
    weight = torch.empty(8, 301).t().copy_(case.weight).requires_grad_()
    logp, entropy = ops.linear_token_logprobs(hidden, weight, case.targets.repeat(2)[::1][:13])
    (logp.mean() + entropy.mean()).backward()  # expanded gradients
    thirteenth = torch.full((13,), 1 / 13)
    expected, wanted = oracle(case, Form(), thirteenth, thirteenth)
    close(logp, expected["logp"].float())
    for leaf, right in zip((hidden, weight), wanted, strict=True):
        assert off(leaf.grad, right) < 3e-6


def test_a_second_derivative_is_refused(cpp):
    hidden, weight, _ = make().leaves()
    logp, _ = ops.linear_token_logprobs(hidden, weight, make().targets)
    first = torch.autograd.grad(logp.sum(), (hidden, weight), create_graph=True)
    with pytest.raises(RuntimeError, match="linear_token_logprobs has no second derivative"):
        sum(t.square().sum() for t in first).backward()


def test_the_engine_follows_needs_and_memory():
    hidden, weight = torch.zeros(10, 4), torch.zeros(100, 4)
    bias = torch.zeros(100)
    assert choose_engine(hidden, weight, bias) == "forward"
    hidden.requires_grad_()
    assert choose_engine(hidden, weight, None) == "keep"
    with torch.no_grad():
        assert choose_engine(hidden, weight, None) == "forward"
    set_logits_budget(10 * 100 * 4)
    assert choose_engine(hidden, weight, None) == "keep"
    set_logits_budget(10 * 100 * 4 - 1)
    assert choose_engine(hidden, weight, None) == "frozen"
    assert choose_engine(hidden, weight, bias.requires_grad_()) == "recompute"
    assert choose_engine(hidden, weight.requires_grad_(), None) == "recompute"
    assert choose_engine(hidden.bfloat16(), weight.bfloat16(), None) == "keep"


def test_the_budget_can_be_set_and_reset():
    assert logits_budget(torch.device("cpu")) == 2**30
    set_logits_budget(5)
    assert logits_budget(torch.device("cpu")) == 5
    set_logits_budget(None)
    assert logits_budget(torch.device("cpu")) == 2**30
    with pytest.raises(ValueError, match="num_bytes must be at least 0"):
        set_logits_budget(-1)


def test_memory(cpp, monkeypatch):
    monkeypatch.setattr(_linear_engines, "_TILE_ELEMENTS", 1 << 20)
    case = make(shape=(512, 8, 16384))
    logits = 512 * 16384 * 4
    tile = 1 << 22
    small = 1 << 21  # gradients, sums, profiler's own

    def run(frozen):
        hidden, weight, _ = case.leaves(frozen)
        logp, entropy = ops.linear_token_logprobs(hidden, weight, case.targets)
        if not frozen:
            entropy.sum().backward(retain_graph=True)
        logp.sum().backward()

    assert logits <= peak_bytes(lambda: run(False)) <= logits + tile + 2 * small
    with torch.no_grad():
        peak = peak_bytes(lambda: ops.linear_token_logprobs(case.hidden, case.weight, case.targets))
        assert peak <= tile + small
    set_logits_budget(0)
    assert peak_bytes(lambda: run(False)) <= tile + 2 * small


def test_frozen_head_memory(cpp, monkeypatch):
    monkeypatch.setattr(_linear_engines, "_CHUNK_BYTES", {"cpu": 1 << 23})
    case = make(shape=(1024, 8, 16384))
    set_logits_budget(0)

    def run():
        hidden, weight, _ = case.leaves(frozen=True)
        ops.linear_token_logprobs(hidden, weight, case.targets)[0].sum().backward()

    assert peak_bytes(run) <= (1 << 23) + (1 << 21)


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_every_run(threads):
    case = make(FORMS[3], (40, 8, 5000))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    set_logits_budget(0)
    runs = []
    for _ in range(2):
        leaves = case.leaves()
        hidden, weight, bias = leaves
        logp, _ = ops.linear_token_logprobs(hidden, weight, case.targets, bias)
        logp.sum().backward()
        runs.append([logp, *(leaf.grad for leaf in leaves)])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_autocast_casts_nothing(backend):
    case = make()
    grads = []
    for enabled in (False, True):
        hidden, weight, _ = case.leaves()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logp, _ = ops.linear_token_logprobs(hidden, weight, case.targets)
        assert logp.dtype == torch.float32
        logp.sum().backward()
        grads.append((logp.detach(), hidden.grad, weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_functorch_is_served_by_the_reference():
    case = make()

    def total(hidden):
        return (ops.linear_token_logprobs(hidden, case.weight, case.targets)[0] * case.g).sum()

    _, wanted = oracle(case, Form(), case.g, None)
    assert off(torch.func.grad(total)(case.hidden), wanted[0]) < 3e-6


@pytest.mark.parametrize("engine", ENGINES)
def test_compiled_equals_eager(backend, engine):
    case = make(FORMS[3], (12, 8, 301))
    set_logits_budget(None if engine == "keep" else 0)

    def run(hidden, weight, bias):
        return ops.linear_token_logprobs(
            hidden, weight, case.targets[:12], bias, stats=STATS, **FORMS[3].keywords
        )

    found = []
    for function in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
        leaves = case.leaves(frozen=engine == "frozen")
        logp, entropy, stats = function(*leaves)
        (logp * case.g[:12] + entropy * case.h[:12]).sum().backward()
        grads = [t.grad for t in leaves if t.requires_grad]
        found.append([logp, entropy, *stats.values(), *grads])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_registered_operations_keep_torch_s_rules(engine):
    case = make(FORMS[3], (5, 3, 11))
    hidden, weight, bias = case.leaves(frozen=engine == "frozen")
    arguments = (hidden, weight, case.targets, bias, 0.7, 3.0, 1.2, engine, True)
    operation = torch.ops.fastrl.linear_token_logprobs.default
    torch.library.opcheck(operation, arguments)
    settings = (0.7, 3.0, 1.2, engine, [True, engine != "frozen", False])
    saved = [t.detach() for t in operation(*arguments)[:4]]
    torch.library.opcheck(
        torch.ops.fastrl.linear_token_logprobs_backward.default,
        (case.hidden, case.weight, case.targets, case.bias, *saved, case.g, None, *settings),
    )


HIDDEN = torch.zeros(3, 4)
WEIGHT = torch.zeros(7, 4)
TARGETS = torch.zeros(3, dtype=torch.int64)
BIAS = torch.zeros(7)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden": HIDDEN.long()}, TypeError, "hidden must be floating point"),
        ({"hidden": HIDDEN[None]}, ValueError, r"hidden must be \(N, D\)"),
        ({"weight": WEIGHT.t()}, ValueError, r"weight must be \(V, 4\)"),
        ({"weight": WEIGHT[:0]}, ValueError, r"weight must be \(V, 4\)"),
        ({"weight": WEIGHT.bfloat16()}, TypeError, "weight is torch.bfloat16 and hidden"),
        ({"bias": BIAS.double()}, TypeError, "bias is torch.float64 and hidden"),
        ({"bias": BIAS[:5]}, ValueError, r"bias must be \(7,\)"),
        ({"weight": WEIGHT.to("meta")}, ValueError, "weight is on meta, hidden on cpu"),
        ({"targets": TARGETS[:2]}, ValueError, r"targets has shape \(2,\)"),
        ({"targets": TARGETS.float()}, TypeError, "targets must be integers"),
        ({"targets": TARGETS + 7}, ValueError, r"targets\[0\] is 7, outside \[0, 7\)"),
        ({"targets": TARGETS - 100}, ValueError, r"targets\[0\] is -100, outside"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"softcap": -1.0}, ValueError, "softcap must be positive"),
        ({"scale": math.nan}, ValueError, "scale must be positive"),
        ({"stats": ("top5",)}, ValueError, "stats has 'top5'; choose among top1, mean_logit"),
    ],
)
def test_bad_input(backend, changes, error, message):
    arguments = {"hidden": HIDDEN, "weight": WEIGHT, "targets": TARGETS, "bias": BIAS}
    with pytest.raises(error, match=message):
        ops.linear_token_logprobs(**{**arguments, **changes})
