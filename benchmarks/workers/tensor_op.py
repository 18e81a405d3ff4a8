"""One tensor operation, by torch or by fastrl: `python tensor_op.py torch|fastrl`.

The first request names the operation, its shape and dtype, the seed and the number of threads. A
round makes one call; its inputs are made before the clock starts and are the same on both sides.
The torch side is what a careful user writes without a library. Each round also sends a few numbers
of the result, so that the two sides can be seen to have computed the same thing. See protocol.py.
"""

from __future__ import annotations

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


OPERATIONS = {"token_logprobs": token_logprobs, "gae": gae, "whiten": whiten}


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
