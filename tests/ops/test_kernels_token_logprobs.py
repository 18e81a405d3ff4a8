"""The GPU kernels of token_logprobs against float64, and where floats and addresses are awkward."""

from __future__ import annotations

import math

import pytest
import torch

INF = math.inf
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (rows, vocabulary): one column, less than a vector, ragged, more than a block, split.
SHAPES = [(1, 1), (3, 7), (5, 515), (3, 9001), (2, 33000)]


def in_double(logits, targets, temperature=1.0):
    """logp, entropy, lse in float64; -inf logits carry no probability."""
    z = logits.double() / temperature
    logps = torch.log_softmax(z, dim=1)
    terms = torch.where(logps.exp() > 0, logps.exp() * logps.clamp(min=-1e300), 0.0)
    return logps.gather(1, targets[:, None])[:, 0], -terms.sum(1), torch.logsumexp(z, dim=1)


def gradient_in_double(logits, targets, grad_logp, grad_entropy, temperature=1.0):
    """By the formulas: d logp = [y] - p, d H = -p (log p + H)."""
    logp, entropy, _ = in_double(logits, targets, temperature)
    logps = torch.log_softmax(logits.double() / temperature, dim=1)
    p = logps.exp()
    rest = torch.zeros_like(p).scatter(1, targets[:, None], 1.0) - p
    others = p.scatter(1, targets[:, None], 0.0).sum(1)
    rest = rest.scatter(1, targets[:, None], others[:, None])
    spread = -p * (torch.where(p > 0, logps, 0.0) + entropy[:, None])
    zero = torch.zeros_like(logp)
    g, h = (zero if grad is None else grad.double() for grad in (grad_logp, grad_entropy))
    return (g[:, None] * rest + h[:, None] * spread) / temperature


def case(rows, vocab, dtype, device, spread=3.0):
    generator = torch.Generator().manual_seed(rows * vocab)
    logits = (torch.randn(rows, vocab, generator=generator) * spread).to(dtype)
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    targets[-1] = vocab - 1
    targets[0] = 0
    if vocab > 20:
        logits[0, 3:9] = -INF
        logits[0, 16:19] = -INF
    grads = torch.randn(2, rows, generator=generator)
    return [tensor.to(device) for tensor in (logits, targets, grads[0], grads[1])]


def assert_scores(actual, logits, targets, temperature=1.0):
    scale = max(1.0, float(logits[logits.isfinite()].abs().max()) / temperature)
    for found, expected in zip(actual, in_double(logits, targets, temperature), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(
            found.double(), expected, rtol=1e-6, atol=2e-6 * scale, equal_nan=True
        )


def assert_gradient(actual, expected, dtype):
    assert actual.dtype == dtype
    # Triton's interpreter cuts bfloat16 off where the device rounds it.
    rounding = {torch.float32: 5e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[dtype]
    tiny = {torch.float32: 0.0, torch.bfloat16: 0.0, torch.float16: 2.0**-24}[dtype]
    atol = 2e-6 * float(expected.abs().max()) + tiny
    torch.testing.assert_close(actual.double(), expected, rtol=rounding, atol=atol)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_and_backward(kernels, shape, dtype):
    if shape[1] > 9000 and dtype == torch.float16:
        return  # the path of bfloat16
    op = kernels("token_logprobs")
    logits, targets, g, h = case(*shape, dtype, kernels.device)
    scores = op.forward(logits, targets, 0.7)
    assert_scores(scores, logits, targets, 0.7)
    _, entropy, lse = scores
    for grads in ((g, None), (None, h), (g, h)):
        actual = op.backward(logits, targets, lse, entropy, *grads, 0.7)
        assert_gradient(actual, gradient_in_double(logits, targets, *grads, 0.7), dtype)
    again = op.forward(logits, targets, 0.7)
    assert all(torch.equal(a, b) for a, b in zip(scores, again, strict=True))


@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_any_stride_and_address(kernels, offset, dtype):
    op = kernels("token_logprobs")
    wide, targets, g, _ = case(4, 1021, dtype, kernels.device)
    logits = wide[:, offset : offset + 1001]
    targets = targets.clamp(max=1000)
    scores = op.forward(logits, targets, 1.0)
    assert_scores(scores, logits, targets)
    room = torch.full((4, 1013), 7.0, dtype=dtype, device=kernels.device)
    out = room[:, 5:1006]
    result = op.backward(logits, targets, scores[2], scores[1], g, None, 1.0, out=out)
    assert result.data_ptr() == out.data_ptr()
    assert_gradient(result, gradient_in_double(logits, targets, g, None), dtype)
    assert torch.all(room[:, :5] == 7.0)
    assert torch.all(room[:, 1006:] == 7.0)


def test_gradient_may_overwrite_the_logits(kernels):
    op = kernels("token_logprobs")
    logits, targets, g, h = case(3, 5003, torch.float32, kernels.device)
    logits[2] += 90.0  # a log-sum-exp so large that it is summed again
    _, entropy, lse = op.forward(logits, targets, 1.0)
    expected = op.backward(logits, targets, lse, entropy, g, h, 1.0)
    assert_gradient(expected, gradient_in_double(logits, targets, g, h), torch.float32)
    found = op.backward(logits, targets, lse, entropy, g, h, 1.0, out=logits)
    assert found.data_ptr() == logits.data_ptr()
    assert torch.equal(found, expected)


def test_extreme_rows(kernels):
    op = kernels("token_logprobs")
    logits = torch.full((6, 70), -200.0)
    logits[1] = -INF
    logits[1, 3] = 5.0
    logits[2] = torch.linspace(-3e4, 3e4, 70)
    logits[3] = -3e38
    logits[4, 7] = -150.0  # p = 1 - 69 e^-50: logp keeps its digits
    logits[5, :35] = -INF
    logits = logits.to(kernels.device)
    targets = torch.tensor([69, 3, 69, 0, 7, 50], device=kernels.device)
    logp, entropy, lse = op.forward(logits, targets, 1.0)
    others = 69 * math.exp(-50.0)
    expected = [-math.log(70), 0.0, 0.0, -math.log(70), -others, -math.log(35)]
    torch.testing.assert_close(logp.cpu(), torch.tensor(expected), rtol=1e-6, atol=0)
    torch.testing.assert_close(entropy, in_double(logits, targets)[1].float())
    ones = torch.ones(6, device=kernels.device)
    gradient = op.backward(logits, targets, lse, entropy, ones, None, 1.0)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient[4, 7].item(), others, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient[4, 8].item(), -math.exp(-50.0), rtol=1e-5, atol=0)
    spread = op.backward(logits, targets, lse, entropy, None, ones, 1.0)
    expected = gradient_in_double(logits, targets, None, ones)
    # 0 for equal logits: what is left is the rounding of p (log p + H) at log p near 4.
    torch.testing.assert_close(spread.double(), expected, rtol=5e-6, atol=2e-8)


def test_impossible_targets_and_nan_are_nan_and_stay_in_their_row(kernels):
    op = kernels("token_logprobs")
    logits = torch.zeros(6, 40, device=kernels.device)
    logits[3, 39] = math.nan
    logits[4, 5] = INF
    targets = torch.tensor([0, 40, -1, 1, 1, 39], device=kernels.device)
    logp, entropy, lse = op.forward(logits, targets, 1.0)
    bad = torch.tensor([False, True, True, True, True, False], device=kernels.device)
    assert torch.equal(logp.isnan(), bad)
    assert torch.equal(entropy.isnan(), bad)
    ones = torch.ones(6, device=kernels.device)
    gradient = op.backward(logits, targets, lse, entropy, ones, None, 1.0)
    assert torch.equal(gradient.isnan().all(dim=1), bad)
    assert torch.equal(gradient.isnan().any(dim=1), bad)
    # A row whose gradients are 0 is 0, whatever it holds.
    some = torch.tensor([1.0, 0, 0, 0, 0, 1], device=kernels.device)
    gradient = op.backward(logits, targets, lse, entropy, some, some, 1.0)
    assert gradient.isfinite().all()
    assert torch.all(gradient[1:5] == 0)


def test_no_rows(kernels):
    op = kernels("token_logprobs")
    logits = torch.zeros(0, 9, device=kernels.device)
    targets = torch.zeros(0, dtype=torch.int64, device=kernels.device)
    logp, entropy, lse = op.forward(logits, targets, 1.0)
    assert logp.shape == entropy.shape == lse.shape == (0,)
    assert op.backward(logits, targets, lse, entropy, logp, None, 1.0).shape == (0, 9)
