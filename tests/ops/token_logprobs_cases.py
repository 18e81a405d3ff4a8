"""What the tests of token_logprobs share: cases, float64 oracles, how far a gradient may be off."""

from __future__ import annotations

import torch

from fastrl import ops

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
