"""token_logprobs as it is called: shapes and views, graphs, large tensors, compiled, bad input."""

from __future__ import annotations

import math

import pytest
import torch

from fastrl import ops
from fastrl.ops.token_logprobs import TOKEN_LOGPROBS
from tests.ops.token_logprobs_cases import (
    DTYPES,
    INF,
    case,
    close_gradient,
    gradient,
    gradient_in_double,
    in_double,
)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (1, 5), (5,), (1, 1, 1), (2, 3, 4, 5)])
def test_shapes(backend, shape, close):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(shape[:-1], dtype=torch.int64)
    logp, entropy = ops.token_logprobs(logits, targets)
    assert logp.shape == entropy.shape == targets.shape
    close((logp, entropy), tuple(t.float() for t in in_double(logits, targets)))
    assert gradient(logits, targets, torch.ones_like(logp), None).shape == logits.shape


def test_slices_and_transposes_are_read_in_place(backend, close):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 40, generator=generator)
    views = {
        "[:, :-1]": logits[:, :-1],
        "[:, 1::2]": logits[:, 1::2],
        "[..., 3:20]": logits[..., 3:20],
        "[::2, :, :7]": logits[::2, :, :7],
        "transposed": logits.transpose(0, 1),
        "last dimension first": logits.permute(2, 0, 1),
        "expanded": logits[:1].expand(4, 6, 40),
    }
    for name, view in views.items():
        targets = torch.randint(0, view.shape[-1], view.shape[:-1], generator=generator)
        grads = torch.randn(2, *view.shape[:-1], generator=generator)
        expected = ops.token_logprobs(view.contiguous(), targets)
        close(ops.token_logprobs(view, targets), expected), name
        close(gradient(view, targets, *grads), gradient(view.contiguous(), targets, *grads)), name


def test_a_sliced_batch_is_not_copied(cpp):
    logits = torch.randn(4, 9, 1000)
    targets = torch.zeros(4, 8, dtype=torch.int64)
    with torch.profiler.profile(profile_memory=True) as profile:
        ops.token_logprobs(logits[:, :-1], targets)
    taken = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert taken < logits.nbytes / 10


def test_gradients_of_any_layout(backend, close):
    logits, targets, _, _ = case(6, 50)
    leaf = logits.view(2, 3, 50).requires_grad_()
    targets = targets.view(2, 3)
    logp, entropy = ops.token_logprobs(leaf, targets)
    (logp.mean() + 2 * entropy.mean()).backward()  # expanded gradients
    sixth = torch.full((2, 3), 1 / 6)
    expected = gradient_in_double(leaf, targets, sixth, 2 * sixth)
    close_gradient(leaf.grad, expected, torch.float32)
    leaf.grad = None
    ops.token_logprobs(leaf, targets)[0].t().backward(torch.arange(6.0).view(3, 2))
    turned = torch.arange(6.0).view(3, 2).t()
    expected = gradient_in_double(leaf, targets, turned, torch.zeros(2, 3))
    close_gradient(leaf.grad, expected, torch.float32)


def test_the_graph_can_be_walked_twice_and_the_logits_stay(backend):
    logits, targets, _, _ = case(5, 70)
    leaf = logits.clone().requires_grad_()
    logp, entropy = ops.token_logprobs(leaf, targets)
    loss = logp.sum() + entropy.sum()
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(first, second)
    assert torch.equal(leaf.detach(), logits)


def test_changing_the_logits_before_the_backward_is_an_error(backend):
    leaf = torch.randn(3, 8, requires_grad=True)
    logits = leaf * 1
    logp, _ = ops.token_logprobs(logits, torch.zeros(3, dtype=torch.int64))
    logits.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logp.sum().backward()


def test_a_second_derivative_is_refused(backend):
    leaf = torch.randn(3, 8, requires_grad=True)
    logp, _ = ops.token_logprobs(leaf, torch.zeros(3, dtype=torch.int64))
    (first,) = torch.autograd.grad(logp.sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="token_logprobs has no second derivative"):
        first.square().sum().backward()


def test_an_unused_result_is_not_differentiated(monkeypatch):
    given = []
    namespace = TOKEN_LOGPROBS.pick(torch.empty(0))
    backward = namespace.backward

    def spy(logits, targets, lse, entropy, grad_logp, grad_entropy, temperature, out=None):
        given.append((grad_logp is None, grad_entropy is None))
        return backward(logits, targets, lse, entropy, grad_logp, grad_entropy, temperature, out)

    monkeypatch.setattr(namespace, "backward", staticmethod(spy))
    logits, targets, g, h = case(3, 8)
    gradient(logits, targets, g, None)
    gradient(logits, targets, None, h)
    assert given == [(False, True), (True, False)]


def test_nothing_is_computed_for_logits_that_need_no_gradient(backend):
    weight = torch.randn(3, requires_grad=True)
    logp, _ = ops.token_logprobs(torch.randn(3, 8), torch.zeros(3, dtype=torch.int64))
    assert not logp.requires_grad
    (logp * weight).sum().backward()
    assert torch.equal(weight.grad, logp)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradcheck(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 9, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.tensor([0, 8, 3])
    assert torch.autograd.gradcheck(
        lambda x: ops.token_logprobs(x, targets, temperature), (logits,), fast_mode=False
    )


def test_the_gradient_may_overwrite_the_logits(backend):
    namespace = TOKEN_LOGPROBS.pick(torch.empty(0))
    for dtype in DTYPES:
        logits, targets, g, h = case(6, 2100, dtype)
        _, entropy, lse = namespace.forward(logits, targets, 0.8)
        fresh = namespace.backward(logits, targets, lse, entropy, g, h, 0.8)
        same = namespace.backward(logits, targets, lse, entropy, g, h, 0.8, out=logits)
        assert same.data_ptr() == logits.data_ptr()
        assert torch.equal(fresh, same)


def test_large_outputs_are_written_around_the_caches(instruction_set):
    # Past 32 MiB the C++ backward stores past the caches, from the first aligned element on.
    logits, targets, g, h = case(17, 520_003)
    with ops.use_backend("cpp"):
        whole = gradient(logits, targets, g, h)
        rows = [
            gradient(logits[i : i + 1], targets[i : i + 1], g[i : i + 1], h[i : i + 1])
            for i in (0, 1, 7, 16)
        ]
    assert torch.equal(whole[[0, 1, 7, 16]], torch.cat(rows))


def test_offsets_beyond_31_bits(instruction_set):
    # Two rows 2^31 + 64 elements apart; only their own pages of the 4 GiB are ever touched.
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        vocab, apart = 1000, 2**31 + 64
        base, out = (torch.empty(apart + vocab, dtype=torch.bfloat16) for _ in range(2))
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True
    logits, d_logits = (t.as_strided((2, vocab), (apart, 1)) for t in (base, out))
    small, targets, g, h = case(2, vocab, torch.bfloat16)
    logits.copy_(small)
    with ops.use_backend("cpp"):
        namespace = TOKEN_LOGPROBS.pick(logits)
        results = namespace.forward(logits, targets, 1.0)
        expected = namespace.forward(small, targets, 1.0)
        for actual, wanted in zip(results, expected, strict=True):
            assert torch.equal(actual, wanted)
        _, entropy, lse = expected
        namespace.backward(logits, targets, lse, entropy, g, h, 1.0, out=d_logits)
        wanted = namespace.backward(small, targets, lse, entropy, g, h, 1.0)
    assert torch.equal(d_logits, wanted)


def test_any_number_of_threads_gives_the_same_bits():
    logits, targets, g, h = case(37, 5003)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append((*ops.token_logprobs(logits, targets), gradient(logits, targets, g, h)))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_autocast_casts_nothing(backend):
    logits, targets, _, _ = case(4, 100)
    plain = ops.token_logprobs(logits, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = ops.token_logprobs(logits, targets)
    assert torch.equal(plain[0], cast[0])
    assert cast[0].dtype == torch.float32


def test_functorch_is_served_by_the_reference(close):
    logits, targets, _, _ = case(4, 30)

    def mean_logp(x):
        return ops.token_logprobs(x, targets)[0].mean()

    quarter = torch.full((4,), 0.25)
    expected = gradient(logits, targets, quarter, None)
    close(torch.func.grad(mean_logp)(logits), expected)
    stacked = torch.func.vmap(lambda x: ops.token_logprobs(x, targets)[0])(logits.expand(3, 4, 30))
    close(stacked, ops.token_logprobs(logits, targets)[0].expand(3, 4))


def test_compiled_equals_eager(backend):
    logits, targets, g, h = case(6, 50)
    compiled = torch.compile(ops.token_logprobs, backend="aot_eager", fullgraph=True, dynamic=True)
    leaf = logits.clone().requires_grad_()
    results = compiled(leaf, targets, 0.8)
    torch.autograd.backward(results, (g, h))
    for actual, wanted in zip(results, ops.token_logprobs(logits, targets, 0.8), strict=True):
        assert torch.equal(actual.detach(), wanted)
    assert torch.equal(leaf.grad, gradient(logits, targets, g, h, 0.8))
    with pytest.raises(ValueError, match=r"targets\[2\] is 50"):
        compiled(leaf, targets.index_fill(0, torch.tensor([2]), 50), 0.8)


def test_the_registered_operations_keep_torch_s_rules():
    logits, targets, g, _ = case(3, 7)
    leaf = logits.requires_grad_()
    torch.library.opcheck(torch.ops.fastrl.token_logprobs.default, (leaf, targets, 0.7))
    arguments = (logits.detach(), targets, g, g, g, None, 0.7)
    torch.library.opcheck(torch.ops.fastrl.token_logprobs_backward.default, arguments)


LOGITS = torch.zeros(2, 3, 5)
TARGETS = torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((LOGITS.long(), TARGETS), TypeError, "logits must be floating point"),
        ((LOGITS.tolist(), TARGETS), TypeError, "logits must be a torch.Tensor"),
        ((LOGITS, TARGETS.float()), TypeError, "targets must be integers"),
        ((LOGITS, TARGETS.bool()), TypeError, "targets must be integers"),
        ((LOGITS, TARGETS[:, :2]), ValueError, r"targets has shape \(2, 2\)"),
        ((LOGITS, TARGETS.to("meta")), ValueError, "targets is on meta, logits on cpu"),
        ((LOGITS[..., :0], TARGETS), ValueError, "V > 0"),
        ((torch.tensor(1.0), TARGETS), ValueError, "logits must be"),
        ((LOGITS, TARGETS - 1), ValueError, r"targets\[0, 0\] is -1, outside \[0, 5\)"),
        ((LOGITS, TARGETS + 5), ValueError, r"targets\[0, 0\] is 5, outside \[0, 5\)"),
        ((LOGITS, TARGETS - 100), ValueError, "is -100, outside"),
        ((LOGITS, TARGETS, 0.0), ValueError, "temperature must be positive"),
        ((LOGITS, TARGETS, -1.0), ValueError, "temperature must be positive"),
        ((LOGITS, TARGETS, math.nan), ValueError, "temperature must be positive"),
        ((LOGITS, TARGETS, INF), ValueError, "temperature must be positive"),
    ],
)
def test_bad_input(backend, arguments, error, message):
    with pytest.raises(error, match=message):
        ops.token_logprobs(*arguments)


def test_int32_targets_are_taken(backend):
    logits, targets, _, _ = case(4, 30)
    expected = ops.token_logprobs(logits, targets)
    assert torch.equal(ops.token_logprobs(logits, targets.int())[0], expected[0])
