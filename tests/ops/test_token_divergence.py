"""token_divergence: by hand, against float64 autograd of the definition, and every engine."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastrl import ops
from fastrl.ops import _divergence_tiles, _linear_engines
from fastrl.ops._dispatch import backend_missing

sys.path.insert(0, str(Path(__file__).parent))
from linear_cases import off, peak_bytes

BETAS = (0.0, 0.3, 1.0)


@pytest.fixture(params=["keep", "recompute", "reference"])
def engine(request, monkeypatch):
    """Each way to a gradient of the head; in chunks of 5 rows, compared 2 rows at a time."""
    reason = backend_missing("cpp")
    if request.param != "reference" and reason is not None:
        pytest.skip(reason)
    monkeypatch.setattr(_linear_engines, "_LEAST_ROWS", 5)
    monkeypatch.setattr(_linear_engines, "_CHUNK_BYTES", {"cpu": 1})
    monkeypatch.setattr(_divergence_tiles, "_PIECE_ELEMENTS", 700)
    ops.set_logits_budget(None if request.param == "keep" else 0)
    with ops.use_backend("reference" if request.param == "reference" else "cpp"):
        yield request.param
    ops.set_logits_budget(None)


@dataclass(frozen=True)
class Case:
    hidden: torch.Tensor  # (N, D)
    weight: torch.Tensor  # (V, D)
    bias: torch.Tensor | None
    teacher: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]  # (N, D'), (V, D'), (V,)
    g: torch.Tensor  # (N,) gradient of the divergence
    numbers: dict[str, Any]
    teacher_numbers: dict[str, Any]
    temperature: float

    def leaves(self, dtype: torch.dtype | None = None):
        return tuple(
            None if t is None else t.to(dtype or t.dtype).clone().requires_grad_()
            for t in (self.hidden, self.weight, self.bias)
        )

    def run(self, leaves, beta: float):
        hidden, weight, bias = leaves
        teacher = [t if t is None else t.to(hidden.dtype) for t in self.teacher]
        return ops.token_divergence(
            hidden,
            weight,
            *teacher[:2],
            beta,
            self.temperature,
            bias=bias,
            teacher_bias=teacher[2],
            **self.numbers,
            **{f"teacher_{name}": number for name, number in self.teacher_numbers.items()},
        )


def make(
    plain: bool = False, n: int = 13, vocab: int = 301, dtype: torch.dtype = torch.float32
) -> Case:
    generator = torch.Generator().manual_seed(3)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(dtype)

    bias, teacher_bias = (None, None) if plain else (normal(vocab), normal(vocab))
    return Case(
        normal(n, 8),
        normal(vocab, 8),
        bias,
        (normal(n, 6), normal(vocab, 6), teacher_bias),
        normal(n).float(),
        {} if plain else {"softcap": 3.0, "scale": 0.5},
        {} if plain else {"softcap": 7.0, "scale": 1.5},
        1.0 if plain else 0.7,
    )


def distribution(hidden, weight, bias, numbers, temperature):
    z = hidden @ weight.t() * 1.0
    if bias is not None:
        z = z + bias
    z = z * numbers.get("scale", 1.0)
    cap = numbers.get("softcap")
    z = z if cap is None else cap * torch.tanh(z / cap)
    return torch.softmax(z / temperature, dim=1)


def oracle(case: Case, beta: float):
    """Divergence, entropy and gradients by the paper's sums over probabilities, in float64."""
    leaves = tuple(
        None if t is None else t.double().requires_grad_()
        for t in (case.hidden, case.weight, case.bias)
    )
    p = distribution(*leaves, case.numbers, case.temperature)
    teacher = [t if t is None else t.double() for t in case.teacher]
    q = distribution(*teacher, case.teacher_numbers, case.temperature)

    def kl(a, b):
        return (a * (a / b).log()).sum(1)

    if beta in (0.0, 1.0):
        value = kl(q, p) if beta == 0.0 else kl(p, q)
    else:
        m = beta * q + (1 - beta) * p
        value = beta * kl(q, m) + (1 - beta) * kl(p, m)
    present = [t for t in leaves if t is not None]
    gradients = torch.autograd.grad((value * case.g.double()).sum(), present)
    return value.detach(), -(p * p.log()).sum(1).detach(), gradients


def test_by_hand(backend, close):
    # Student (1/4, 3/4), teacher (1/2, 1/2), mixture at 1/2 (3/8, 5/8).
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(3)]], requires_grad=True)
    teacher = torch.zeros(1, 1), torch.zeros(2, 1)
    forward = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    reverse = 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)
    of_teacher = 0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)
    of_student = 0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)
    # The slope of z_1 is minus that of z_0, as a softmax does not feel a shift.
    slopes = {
        0.0: 0.25 - 0.5,
        0.5: 0.5 * 0.25 * (math.log(2 / 3) - of_student),
        1.0: 0.25 * (math.log(1 / 2) - reverse),
    }
    for beta, value in ((0.0, forward), (1.0, reverse), (0.5, (of_teacher + of_student) / 2)):
        found, entropy = ops.token_divergence(hidden, weight, *teacher, beta)
        close(found, torch.tensor([value]))
        close(entropy, torch.tensor([0.25 * math.log(4) + 0.75 * math.log(4 / 3)]))
        d_weight = torch.autograd.grad(2 * found.sum(), weight)[0]
        close(d_weight, torch.tensor([[2 * slopes[beta]], [-2 * slopes[beta]]]))


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("plain", [True, False])
def test_matches_float64(engine, beta, plain, close):
    case = make(plain)
    value, entropy, gradients = oracle(case, beta)
    leaves = case.leaves()
    found, found_entropy = case.run(leaves, beta)
    assert found.dtype == torch.float32
    assert not found_entropy.requires_grad
    torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found_entropy.double(), entropy, rtol=1e-5, atol=1e-6)
    (found * case.g).sum().backward()
    for leaf, gradient in zip([t for t in leaves if t is not None], gradients, strict=True):
        assert off(leaf.grad, gradient) < 3e-6
    hidden, *_ = case.leaves()
    alone, _ = case.run((hidden, case.weight, case.bias), beta)
    (alone * case.g).sum().backward()
    assert off(hidden.grad, gradients[0]) < 3e-6


@pytest.mark.parametrize("beta", BETAS)
def test_of_logits(backend, beta):
    case = make(plain=True)
    teacher_z = case.teacher[0] @ case.teacher[1].t()
    z = (case.hidden @ case.weight.t()).requires_grad_()
    found = ops.logits_divergence(1.3 * z, 1.3 * teacher_z, beta, temperature=1.3)
    expected = case.run((case.hidden, case.weight, None), beta)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    (found[0] * case.g).sum().backward()
    right = oracle(case, beta)[2][0]
    assert off(z.grad @ case.weight, right) < 3e-6


@pytest.mark.parametrize("beta", BETAS)
def test_16_bit_inputs(engine, beta):
    case = make(plain=True, n=40, vocab=700, dtype=torch.bfloat16)
    _, _, gradients = oracle(case, beta)
    # What torch's own operations make of the same inputs, logits in bfloat16, all else in float32.
    leaves = case.leaves()
    eager = replace(case, teacher=tuple(None if t is None else t for t in case.teacher))
    z, teacher_z = leaves[0] @ leaves[1].t(), eager.teacher[0] @ eager.teacher[1].t()
    s, t = torch.log_softmax(z.float(), 1), torch.log_softmax(teacher_z.float(), 1)
    m = torch.log((1 - beta) * s.exp() + beta * t.exp())
    plain = (1 - beta) * (s.exp() * (s - m)).sum(1) + beta * (t.exp() * (t - m)).sum(1)
    if beta in (0.0, 1.0):
        plain = ((t.exp() * (t - s)) if beta == 0.0 else (s.exp() * (s - t))).sum(1)
    wanted = torch.autograd.grad((plain * case.g).sum(), leaves[:2])
    mine = case.leaves()
    found, _ = case.run(mine, beta)
    assert found.dtype == torch.float32
    (found * case.g).sum().backward()
    for leaf, by_torch, right in zip(mine[:2], wanted, gradients, strict=True):
        assert leaf.grad.dtype == torch.bfloat16
        assert off(leaf.grad, right) < 1.3 * off(by_torch, right)


@pytest.mark.parametrize("beta", BETAS)
def test_tokens_that_cannot_be(engine, beta):
    """What neither side can draw leaves a result as if it were not in the vocabulary."""
    case = make(n=6, vocab=40)
    bias, teacher_bias = case.bias.clone(), case.teacher[2].clone()
    case = replace(case, numbers={}, teacher_numbers={})
    bias[30:] = teacher_bias[30:] = -math.inf
    within = replace(
        case,
        weight=case.weight[:30],
        bias=bias[:30],
        teacher=(case.teacher[0], case.teacher[1][:30], teacher_bias[:30]),
    )
    value, entropy, gradients = oracle(within, beta)
    whole = replace(case, bias=bias, teacher=(*case.teacher[:2], teacher_bias))
    leaves = whole.leaves()
    found, found_entropy = whole.run(leaves, beta)
    (found * case.g).sum().backward()
    torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found_entropy.double(), entropy, rtol=1e-5, atol=1e-6)
    assert off(leaves[0].grad, gradients[0]) < 3e-6
    assert off(leaves[1].grad[:30], gradients[1]) < 3e-6
    assert (leaves[1].grad[30:] == 0).all()


@pytest.mark.parametrize("only", ["student", "teacher"])
def test_what_one_side_cannot_draw(backend, only):
    # The other side: (1/2, 1/2); this one: (1, 0). In between the ends: m = (1 + beta) / 2 or so.
    one, other = torch.tensor([[0.0, -math.inf]]), torch.zeros(1, 2)
    student, teacher = (one, other) if only == "student" else (other, one)
    infinite = 0.0 if only == "student" else 1.0
    assert ops.logits_divergence(student, teacher, infinite)[0].item() == math.inf
    finite = ops.logits_divergence(student, teacher, 1.0 - infinite)[0].item()
    assert finite == pytest.approx(math.log(2))  # KL((1, 0) || (1/2, 1/2))
    student = student.clone().requires_grad_()
    middle, entropy = ops.logits_divergence(student, teacher, 0.5)
    halves = math.log(4 / 3), 0.5 * math.log(2 / 3) + 0.5 * math.log(2)  # KL to m = (3/4, 1/4)
    assert middle.item() == pytest.approx(sum(halves) / 2)
    assert entropy.item() == pytest.approx(0.0 if only == "student" else math.log(2))
    middle.sum().backward()
    # (1 - beta) p_0 (log p_0 / m_0 - KL(p || m))
    slope = 0.0 if only == "student" else 0.25 * (math.log(2 / 3) - halves[1])
    torch.testing.assert_close(student.grad, torch.tensor([[slope, -slope]]))


@pytest.mark.parametrize("beta", BETAS)
def test_peaked_and_far_below_zero(backend, beta):
    z = torch.tensor([[0.0, 150.0, -200.0], [-1e4, -1e4 - 1.0, -1e4]])
    teacher_z = torch.tensor([[3.0, 153.0, -500.0], [-2e4 - 1.0, -2e4, -2e4]])
    leaf = z.clone().requires_grad_()
    found, _ = ops.logits_divergence(leaf, teacher_z, beta)
    found.sum().backward()
    assert found[0].item() == pytest.approx(0.0, abs=1e-6)
    assert leaf.grad.isfinite().all()
    exact = z[1:].double().requires_grad_()
    with ops.use_backend("reference"):
        right, _ = ops.logits_divergence(exact, teacher_z[1:].double(), beta)
    right.sum().backward()
    torch.testing.assert_close(found[1:].double(), right, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(leaf.grad[1:].double(), exact.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [0, 1])
def test_few_rows(engine, n):
    case = make(n=n)
    leaves = case.leaves()
    found, _ = case.run(leaves, 0.3)
    value, _, gradients = oracle(case, 0.3)
    (found * case.g).sum().backward()
    torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-6)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(leaf.grad.double(), gradient, rtol=1e-4, atol=1e-6)


def test_rows_without_a_gradient_add_nothing(engine):
    if engine == "reference":
        pytest.skip("torch's own product of 0 and NaN is NaN")
    case = make(n=7)
    states = case.teacher[0].clone()
    states[3] = math.nan
    g = case.g.clone()
    g[3] = 0.0
    leaves = case.leaves()
    found, _ = replace(case, teacher=(states, *case.teacher[1:])).run(leaves, 0.5)
    (found.where(g != 0, 0.0) * g).sum().backward()
    _, _, gradients = oracle(replace(case, g=g), 0.5)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert off(leaf.grad, gradient) < 3e-6


def test_float64_runs_in_float64():
    case = make(n=2, vocab=4)
    leaves = case.leaves(torch.float64)
    for beta in (0.0, 0.4, 1.0):
        run = lambda *t, b=beta: case.run(t, b)[0]  # noqa: E731
        assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_the_graph_can_be_walked_twice_and_inputs_stay(engine):
    case = make()
    leaves = case.leaves()
    found, _ = case.run(leaves, 0.5)
    first = torch.autograd.grad(found.sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(2 * found.sum(), leaves)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(2 * one, other)
    assert torch.equal(leaves[0].detach(), case.hidden)
    assert not case.teacher[1].requires_grad


def test_a_second_derivative_is_refused(cpp):
    case = make()
    leaves = case.leaves()
    found, _ = case.run(leaves, 0.5)
    first = torch.autograd.grad(found.sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="token_divergence has no second derivative"):
        sum(t.square().sum() for t in first).backward()


def test_memory(cpp, monkeypatch):
    """A chunk of logits a side, and what a few rows of them are compared with."""
    monkeypatch.setattr(_linear_engines, "_LEAST_ROWS", 16)
    monkeypatch.setattr(_linear_engines, "_CHUNK_BYTES", {"cpu": 1 << 16})
    monkeypatch.setattr(_divergence_tiles, "_PIECE_ELEMENTS", 1 << 11)
    ops.set_logits_budget(0)
    try:
        case = make(plain=True, n=128, vocab=1024)
        leaves = case.leaves()
        peak = peak_bytes(lambda: case.run(leaves, 0.5)[0].sum().backward())
    finally:
        ops.set_logits_budget(None)
    chunk, piece = 16 * 1024 * 4, (1 << 11) * 4
    assert peak < 3 * chunk + 10 * piece + 4 * case.weight.nbytes
    assert peak < 128 * 1024 * 4 / 2  # not one side's logits


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"beta": 1.5}, ValueError, r"beta must lie in \[0, 1\], not 1.5"),
        ({"beta": "half"}, TypeError, "beta must be a number"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"teacher_weight": torch.zeros(8, 5)}, ValueError, "teacher_weight has 8 tokens and wei"),
        ({"teacher_weight": torch.zeros(7, 4)}, ValueError, r"teacher_weight must be \(V, 5\)"),
        ({"teacher_hidden": torch.zeros(2, 5)}, ValueError, "teacher_hidden has 2 rows and hidden"),
        ({"teacher_hidden": torch.zeros(3, 5).int()}, TypeError, "teacher_hidden must be floating"),
        ({"teacher_scale": -1.0}, ValueError, "teacher_scale must be positive"),
        ({"bias": torch.zeros(6)}, ValueError, r"bias must be \(7,\)"),
        ({"weight": torch.zeros(7, 4).double()}, TypeError, "weight is torch.float64 and hidden"),
    ],
)
def test_bad_arguments(backend, change, error, message):
    arguments = {
        "hidden": torch.zeros(3, 4),
        "weight": torch.zeros(7, 4),
        "teacher_hidden": torch.zeros(3, 5),
        "teacher_weight": torch.zeros(7, 5),
    }
    with pytest.raises(error, match=message):
        ops.token_divergence(**{**arguments, **change})


def test_bad_logits(backend):
    with pytest.raises(ValueError, match="teacher_logits has shape"):
        ops.logits_divergence(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"logits must be \(N, V\)"):
        ops.logits_divergence(torch.zeros(3), torch.zeros(3))
