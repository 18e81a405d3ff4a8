"""token_logprobs: by hand, against float64 autograd, at the edges of what floats can hold."""

from __future__ import annotations

import math

import pytest
import torch

from fastrl import ops
from fastrl.ops.token_logprobs import TOKEN_LOGPROBS

INF = float("inf")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def in_double(logits, targets, temperature=1.0):
    """logp and entropy in float64 by torch's log_softmax; -inf logits carry no probability."""
    logps = torch.log_softmax(logits.double() / temperature, dim=-1)
    terms = torch.where(logps.exp() > 0, logps.exp() * logps.clamp(min=-1e300), 0.0)
    return logps.gather(-1, targets[..., None])[..., 0], -terms.sum(-1)


def gradient_in_double(logits, targets, grad_logp, grad_entropy, temperature=1.0):
    """d logits by autograd in float64; the logits must be finite."""
    leaf = logits.detach().double().requires_grad_()
    logp, entropy = in_double(leaf, targets, temperature)
    loss = (logp * grad_logp.double()).sum() + (entropy * grad_entropy.double()).sum()
    return torch.autograd.grad(loss, leaf)[0]


def gradient(logits, targets, grad_logp, grad_entropy, temperature=1.0):
    """d logits by the op; a gradient that is None is not asked for."""
    leaf = logits.detach().requires_grad_()
    results = ops.token_logprobs(leaf, targets, temperature)
    pairs = [
        (r, g) for r, g in zip(results, (grad_logp, grad_entropy), strict=True) if g is not None
    ]
    torch.autograd.backward([r for r, _ in pairs], [g for _, g in pairs])
    return leaf.grad


def case(rows, vocab, dtype=torch.float32, spread=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, vocab, generator=generator) * spread).to(dtype)
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    if rows:
        targets[0] = vocab - 1
    if rows > 1:
        targets[1] = 0
    grads = torch.randn(2, rows, generator=generator)
    return logits, targets, grads[0], grads[1]


def close_gradient(actual, expected, dtype):
    """Within 5e-6 of the largest element, and the rounding of the output's own dtype.

    A log-sum-exp between 16 and 32 is rounded to 1e-6 in fp32, which p and log p then carry.
    """
    assert actual.dtype == dtype
    rounding = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    tiny = {torch.float32: 0.0, torch.bfloat16: 0.0, torch.float16: 2.0**-25}[dtype]
    largest = expected.abs().max().item() if expected.numel() else 0.0
    allowed = 5e-6 * max(largest, 1.0) + tiny + rounding * expected.abs()
    error = (actual.double() - expected).abs()
    assert (error <= allowed).all(), f"off by {error.max().item()}"


def test_by_hand(backend, close):
    # exp: 1, 2, 5 of 8.  H = -(1/8 log 1/8 + 2/8 log 2/8 + 5/8 log 5/8).
    logits = torch.tensor([[0.0, math.log(2), math.log(5)]] * 2)
    logp, entropy = ops.token_logprobs(logits, torch.tensor([0, 2]))
    close(logp, torch.tensor([math.log(1 / 8), math.log(5 / 8)]))
    expected = -(math.log(1 / 8) / 8 + math.log(1 / 4) / 4 + 5 * math.log(5 / 8) / 8)
    close(entropy, torch.full((2,), expected))
    # At temperature 1/2 the exponentials are squared: 1, 4, 25 of 30.
    close(ops.token_logprobs(logits, torch.tensor([0, 2]), 0.5)[0][1], torch.tensor(25 / 30).log())


def test_gradient_by_hand(backend, close):
    logits = torch.tensor([[0.0, math.log(2), math.log(5)]])
    d_logits = gradient(logits, torch.tensor([1]), torch.tensor([2.0]), None, 0.5)
    # 2 / (1/2) * ([0, 1, 0] - [1, 4, 25] / 30)
    close(d_logits, 4 * torch.tensor([[-1 / 30, 26 / 30, -25 / 30]]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("vocab", "temperature"),
    [
        (1, 0.7),
        (2, 1.0),
        (7, 0.7),
        (16, 1.5),
        (17, 1.0),
        (64, 0.7),
        (257, 0.9),
        (2049, 1.0),
        (4500, 0.7),
    ],
)
def test_matches_float64(backend, dtype, vocab, temperature, close):
    logits, targets, g, h = case(9, vocab, dtype)
    logp, entropy = ops.token_logprobs(logits, targets, temperature)
    assert logp.dtype == entropy.dtype == torch.float32
    expected = in_double(logits, targets, temperature)
    close((logp, entropy), tuple(t.float() for t in expected), dtype)
    for g_or_none, h_or_none in ((g, h), (g, None), (None, h)):
        actual = gradient(logits, targets, g_or_none, h_or_none, temperature)
        zeros = torch.zeros_like(g)
        wanted = [zeros if t is None else t for t in (g_or_none, h_or_none)]
        close_gradient(actual, gradient_in_double(logits, targets, *wanted, temperature), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [5, 31, 257, 4099])
def test_every_instruction_set(instruction_set, dtype, vocab, close):
    logits, targets, g, h = case(7, vocab, dtype)
    logits[2, vocab // 2] = -INF
    targets[2] = 0
    with ops.use_backend("cpp"):
        results = ops.token_logprobs(logits, targets, 0.9)
        d_logits = gradient(logits, targets, g, h, 0.9)
    close(results, tuple(t.float() for t in in_double(logits, targets, 0.9)), dtype)
    finite = logits.masked_fill(logits == -INF, -1e4)
    close_gradient(d_logits, gradient_in_double(finite, targets, g, h, 0.9), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_of_gradients_is_to_nearest_even(instruction_set, dtype):
    # One column: d logit = g (1 - p) = 0. Two equal columns: g / 2, halves of all kinds of floats.
    generator = torch.Generator().manual_seed(3)
    g = torch.randn(4000, generator=generator) * 10.0 ** torch.randint(
        -9, 5, (4000,), generator=generator
    )
    g[:3] = torch.tensor([INF, -INF, float("nan")])
    # Half way between two neighbours: the dropped bits are 1 and then zeros.
    dropped = 16 if dtype == torch.bfloat16 else 13
    bits = g[1000:2000].view(torch.int32) >> dropped << dropped
    g[1000:2000] = (bits | 1 << (dropped - 1)).view(torch.float32)
    logits = torch.zeros(4000, 2, dtype=dtype)
    with ops.use_backend("cpp"):
        actual = gradient(logits, torch.zeros(4000, dtype=torch.int64), g, None)
    torch.testing.assert_close(actual[:, 0], (g / 2).to(dtype), rtol=0, atol=0, equal_nan=True)


def test_minus_infinity_carries_nothing(backend, close):
    logits, targets, g, h = case(6, 50)
    kept = torch.arange(0, 50, 2)
    targets = targets // 2 * 2
    masked = torch.full_like(logits, -INF)
    masked[:, kept] = logits[:, kept]
    expected = in_double(logits[:, kept], targets // 2)
    close(ops.token_logprobs(masked, targets), tuple(t.float() for t in expected))
    d_logits = gradient(masked, targets, g, h)
    assert (d_logits[:, 1::2] == 0).all()
    small = gradient_in_double(logits[:, kept], targets // 2, g, h)
    close_gradient(d_logits[:, kept], small, torch.float32)


def test_minus_infinity_fills_the_first_blocks(backend, close):
    logits, targets, g, h = case(3, 6000)
    logits[:, :4500] = -INF
    targets[:] = torch.tensor([4500, 5999, 5000])
    expected = in_double(logits[:, 4500:], targets - 4500)
    close(ops.token_logprobs(logits, targets), tuple(t.float() for t in expected))
    d_logits = gradient(logits, targets, g, h)
    assert not d_logits.isnan().any()


def test_a_target_that_cannot_be(backend, close):
    logits, targets, g, h = case(2, 30)
    logits[0, targets[0]] = -INF
    logp, entropy = ops.token_logprobs(logits, targets)
    assert logp[0] == -INF
    assert logp[1].isfinite()
    assert entropy.isfinite().all()
    d_logits = gradient(logits, targets, g, h)
    assert d_logits.isfinite().all()
    close(d_logits[0, targets[0]], g[0])  # d (z_y - lse) / d z_y = 1 - p_y = 1


def test_only_one_token_can_be(backend):
    logits = torch.full((1, 40), -INF)
    logits[0, 7] = 3.0
    logp, entropy = ops.token_logprobs(logits, torch.tensor([7]))
    assert logp.item() == 0.0
    assert entropy.item() == 0.0
    ones = torch.ones(1)
    assert (gradient(logits, torch.tensor([7]), ones, ones) == 0).all()


def test_a_row_without_any_possible_token_is_nan(backend):
    logits, targets, _, _ = case(3, 40)
    logits[1] = -INF
    logp, entropy = ops.token_logprobs(logits, targets)
    assert logp.isnan().tolist() == [False, True, False]
    assert entropy.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("junk", [INF, float("nan")])
@pytest.mark.parametrize("column", [0, 3, 2100])
def test_junk_stays_in_its_row_and_shows(backend, junk, column):
    logits, targets, g, h = case(3, 3000)
    targets[1] = 3
    logits[1, column] = junk
    logp, entropy = ops.token_logprobs(logits, targets)
    assert logp.isnan().tolist() == [False, True, False]
    assert entropy.isnan().tolist() == [False, True, False]
    d_logits = gradient(logits, targets, g, h)
    assert d_logits[1].isnan().any()
    assert d_logits[[0, 2]].isfinite().all()


@pytest.mark.parametrize("offset", [-200.0, -3e4, 3e4, 1e6])
def test_a_common_offset_changes_nothing(backend, offset, close):
    steps = torch.randint(-20, 20, (4, 3000), generator=torch.Generator().manual_seed(1)) / 4.0
    _, targets, g, h = case(4, 3000)
    close(ops.token_logprobs(steps + offset, targets), ops.token_logprobs(steps, targets))
    moved = gradient(steps + offset, targets, g, h)
    close_gradient(moved, gradient_in_double(steps, targets, g, h), torch.float32)


def test_logits_from_one_end_of_fp16_to_the_other(backend, close):
    logits, targets, g, h = case(5, 300, torch.float16)
    logits[:, ::2] = -3e4
    logits[0, 5] = 3e4
    logits[1, 4] = 6e4
    targets[:2] = torch.tensor([5, 7])
    logp, entropy = ops.token_logprobs(logits, targets)
    expected_logp, expected_entropy = in_double(logits, targets)
    close((logp, entropy), (expected_logp.float(), expected_entropy.float()), torch.float16)
    d_logits = gradient(logits, targets, g, h)
    close_gradient(d_logits, gradient_in_double(logits, targets, g, h), torch.float16)


def test_the_lowest_float_as_a_mask(backend, close):
    # Masks are often written as finfo.min; a row of nothing else is then uniform.
    logits, targets, _, _ = case(3, 100)
    logits[0] = torch.finfo(torch.float32).min
    logits[1, 50:] = torch.finfo(torch.float32).min
    targets[1] = 3
    logp, entropy = ops.token_logprobs(logits, targets)
    close(logp[0], torch.tensor(-math.log(100.0)))
    close(entropy[0], torch.tensor(math.log(100.0)))
    expected = in_double(logits[1:2, :50], targets[1:2])
    close((logp[1:2], entropy[1:2]), tuple(t.float() for t in expected))


@pytest.mark.parametrize("gap", [10.0, 17.0, 25.0, 60.0])
def test_near_certainty_keeps_its_digits(backend, gap):
    # p = 1 / (1 + n e^-gap): from a gap of 17 on, z - lse is exactly 0 in fp32.
    n = 99
    logits = torch.zeros(1, n + 1)
    logits[0, 42] = gap
    targets = torch.tensor([42])
    others = n * math.exp(-gap)
    logp, entropy = ops.token_logprobs(logits, targets)
    assert logp.item() == pytest.approx(-math.log1p(others), rel=1e-5)
    p = 1 / (1 + others)
    true_entropy = math.log1p(others) + others * p * gap
    assert entropy.item() == pytest.approx(true_entropy, rel=1e-4, abs=2e-7)
    d_logits = gradient(logits, targets, torch.ones(1), None)
    assert d_logits[0, 42].item() == pytest.approx(others * p, rel=1e-5)
    assert d_logits[0, 0].item() == pytest.approx(-others * p / n, rel=1e-5)


def test_rows_without_incoming_gradient_cost_nothing_even_as_nan(backend):
    logits, targets, g, _ = case(4, 100)
    logits[1] = float("nan")
    logits[2] = -INF
    g[1:3] = 0
    d_logits = gradient(logits, targets, g, torch.zeros(4))
    assert (d_logits[1:3] == 0).all()
    assert (d_logits[[0, 3]] != 0).any(dim=1).all()
    everything_masked = gradient(logits, targets, torch.zeros(4), torch.zeros(4))
    assert (everything_masked == 0).all()


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
