"""linear_token_logprobs: the call against float64, choosing an engine, memory, torch's rules."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from fastrl import ops
from fastrl.ops import _linear_engines
from fastrl.ops._logits_budget import logits_budget, set_logits_budget
from fastrl.ops.linear_token_logprobs import choose_engine

sys.path.insert(0, str(Path(__file__).parent))
from linear_cases import ENGINES, FORMS, STATS, Form, make, off, oracle, peak_bytes


@pytest.fixture(autouse=True)
def default_budget():
    yield
    set_logits_budget(None)


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
