"""One tensor operation, by torch or by fastrl: `python tensor_op.py torch|fastrl`.

The first request names the operation, its shape and dtype, the seed and the number of threads. A
round makes one call; its inputs are made before the clock starts and are the same on both sides.
The torch side is what a careful user writes without a library. Each round also sends a few numbers
of the result, so that the two sides can be seen to have computed the same thing. See protocol.py.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import protocol
import torch

Call = Callable[[], tuple[torch.Tensor, ...]]


def torch_token_logprobs(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Log-probability of the target and entropy over the last dimension."""
    logp = torch.log_softmax(logits, dim=-1)
    taken = logp.gather(-1, targets[:, None]).squeeze(-1)
    return taken, -(logp.exp() * logp).sum(-1)


def torch_gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, ...]:
    """Generalised advantage estimation by a loop from the last column to the first."""
    values, rewards = values * mask, rewards * mask
    after = torch.zeros_like(values[:, 0])
    running = torch.zeros_like(after)
    columns = []
    for t in reversed(range(values.shape[1])):
        running = rewards[:, t] + gamma * after - values[:, t] + gamma * lam * running
        after = values[:, t]
        columns.append(running)
    advantages = torch.stack(columns[::-1]).T
    return advantages, advantages + values


def torch_whiten(x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor]:
    """(x − masked mean) / sqrt(masked unbiased variance + 1e-8)."""
    count = mask.sum()
    mean = (x * mask).sum() / count
    variance = ((x - mean) ** 2 * mask).sum() / (count - 1)
    return ((x - mean) * torch.rsqrt(variance + 1e-8),)


def token_logprobs(request: dict[str, Any], library: Any) -> Call:
    """`logits` (N, V) of standard deviation 3 in the dtype asked for."""
    count, vocab = request["shape"]
    logits = (3 * torch.randn(count, vocab)).to(getattr(torch, request["dtype"]))
    targets = torch.randint(vocab, (count,))
    function = library.token_logprobs if library else torch_token_logprobs
    return lambda: function(logits, targets)


def gae(request: dict[str, Any], library: Any) -> Call:
    """(B, T) with rows masked after a random length."""
    batch, width = request["shape"]
    rewards, values = torch.randn(batch, width), torch.randn(batch, width)
    mask = torch.arange(width)[None] < torch.randint(width // 2, width + 1, (batch, 1))
    function = library.gae if library else torch_gae
    return lambda: function(rewards, values, mask, 1.0, 0.95)


def whiten(request: dict[str, Any], library: Any) -> Call:
    """(N,) as (4096, N / 4096) with one element in four masked out."""
    x = torch.randn(request["shape"]) * 2 + 1
    mask = torch.rand(request["shape"]) < 0.75
    function = library.whiten if library else torch_whiten
    return lambda: function(x, mask)


def few_rows_linear(request: dict[str, Any], library: Any) -> Call:
    """(N, D) by a weight (V, D) of standard deviation 1 / sqrt(D)."""
    count, depth, width = request["shape"]
    rows, weight = torch.randn(count, depth), torch.randn(width, depth) / depth**0.5
    function = library.few_rows_linear if library else torch.nn.functional.linear
    return lambda: function(rows, weight)


def segment_attention(request: dict[str, Any], library: Any) -> Call:
    """Groups of answers, each behind its group's prompt, in one packed row; 4 heads, 2 of keys."""
    groups, answers, prompt, length = request["shape"]
    each = prompt + answers * length
    made = [torch.randn(1, groups * each, count, 64) for count in (4, 2, 2)]
    leaves = [one.transpose(1, 2).requires_grad_() for one in made]
    first = torch.arange(groups)[:, None, None] * each  # where a group begins
    own = prompt + torch.arange(answers)[:, None] * length + torch.arange(length)
    before = torch.arange(prompt).expand(groups, answers, prompt)
    # (groups * answers, prompt + length) place in the packed row of each token of a row by itself
    places = torch.cat([first + before, first + own[None].expand(groups, -1, -1)], dim=2)
    places = places.flatten(0, 1)
    upstream = torch.randn(1, groups * each, 4, 64)
    upstream[:, places[:, :prompt].flatten()] = 0  # the answers' outputs alone are read

    def torch_way() -> torch.Tensor:
        query, key, value = (leaf[0][:, places].transpose(0, 1) for leaf in leaves)
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )
        tokens = out.transpose(1, 2)[:, prompt:].flatten(0, 1)[None]
        return torch.zeros_like(upstream).index_copy(1, places[:, prompt:].flatten(), tokens)

    def packed() -> torch.Tensor:
        return library.segment_attention(*leaves, segments)

    if library:
        from fastrl.ops.segment_attention import Segments

        group = (prompt, *[length] * answers)
        after = [(-1, *[start * (answers + 1)] * answers) for start in range(groups)]
        segments = Segments(group * groups, sum(after, ()))

    def call() -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            out = packed() if library else torch_way()
            gradients = torch.autograd.grad(out, leaves, upstream)
        answered = out.detach()[:, places[:, prompt:].flatten()]
        return (answered, *gradients)

    return call


def token_divergence(request: dict[str, Any], library: Any) -> Call:
    """(N, D) hidden states of two models and their heads (V, D): Jensen-Shannon, and gradients."""
    count, depth, width = request["shape"]
    made = [torch.randn(rows, depth) for rows in (count, width, count, width)]
    hidden, weight, teacher_hidden, teacher_weight = (one / depth**0.25 for one in made)
    leaves = (hidden.requires_grad_(), weight.requires_grad_())

    def torch_way() -> torch.Tensor:
        with torch.no_grad():
            t = torch.log_softmax(teacher_hidden @ teacher_weight.T, dim=-1)
        s = torch.log_softmax(hidden @ weight.T, dim=-1)
        m = torch.logaddexp(s, t) - math.log(2)
        return ((s.exp() * (s - m)).sum(-1) + (t.exp() * (t - m)).sum(-1)) / 2

    def call() -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            if library:
                found, _ = library.token_divergence(*leaves, teacher_hidden, teacher_weight)
            else:
                found = torch_way()
            gradients = torch.autograd.grad(found.sum(), leaves)
        return (found.detach(), *gradients)

    return call


OPERATIONS = {
    "token_logprobs": token_logprobs,
    "gae": gae,
    "whiten": whiten,
    "few_rows_linear": few_rows_linear,
    "segment_attention": segment_attention,
    "token_divergence": token_divergence,
}


def setup(request: dict[str, Any]) -> protocol.Round:
    """Make the inputs; a round times one call."""
    torch.set_num_threads(request["threads"])
    library = None
    if sys.argv[1] == "fastrl":
        protocol.import_fastrl()
        import fastrl.ops as library
    torch.manual_seed(request["seed"])
    call = OPERATIONS[request["operation"]](request, library)

    def run(number: int) -> dict[str, Any]:
        with torch.no_grad():
            seconds, result = protocol.timed(call)
        results = result if isinstance(result, tuple) else (result,)
        samples = [part.flatten()[:: max(1, part.numel() // 64)].tolist() for part in results]
        return {"seconds": seconds, "samples": samples}

    return run


if __name__ == "__main__":
    protocol.serve(setup)
